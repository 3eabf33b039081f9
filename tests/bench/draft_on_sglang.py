"""A draft that scores prompts on SGLang: the peer that `draft_engines.py` measures the shipped scorer against.

Five hooks in SGLang's scheduler process, all of them functions that presift's plugin hooks too. A request carries which
rows and heads to score. The rows are scored by the `RowCapture` of the shipped scorer, so that only the engines differ;
their keys come from SGLang's pool, whether they were just computed or are in its radix cache. There is no lookahead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from presift.core.policies import SpecPc
from presift.draft.attention import RowCapture, ScoredHeads
from presift.draft.scorer import HeadReduction
from presift.models.torchvision_ops import declare_missing
from presift.target.sglang import processes
from presift.target.sglang.arguments import SglangOptions, server_arguments, set_environment
from presift.target.sglang.engine import SglangEngine
from presift.target.sglang.processes import ChildFunction

KEY = "presift_draft_bench"


class DraftEngine(SglangEngine):
    """An engine that only scores. `layers`: serve so many first layers, by an override of the model's config."""

    def __init__(self, options: SglangOptions, heads: ScoredHeads, window: int, layers: int | None = None) -> None:
        super().__init__(options)
        self._layers = layers
        self._rows = json.dumps({"window": window, "heads": dict(heads.by_layer), "reduction": heads.reduction})

    async def score(self, token_ids: NDArray[np.uint32]) -> tuple[NDArray[np.float32], int]:
        """float32[n] importance of a prompt, and how many of its tokens came from the radix cache."""
        from sglang.srt.managers.io_struct import GenerateReqInput

        # With the one token SGLang sends what was scored.
        sampling: dict[str, Any] = {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True}
        sampling["custom_params"] = {KEY: self._rows}
        request = GenerateReqInput(input_ids=token_ids.tolist(), sampling_params=sampling, stream=False)
        async for answer in self._manager.generate_request(request):
            last = answer
        return last["meta_info"][KEY][-1], last["meta_info"]["cached_tokens"]

    def _launch(self) -> Any:
        set_environment(self._options)
        declare_missing()
        # Otherwise it would begin to decode a second token before it knows that a request has ended.
        override: dict[str, Any] = {"disable_overlap_schedule": True}
        if self._layers is not None:
            override["json_model_override_args"] = _first_layers(self)
        with mock.patch.object(processes, "ChildFunction", _child_function):
            return processes.launch(server_arguments(self._options) | override)


def _first_layers(engine: DraftEngine) -> str:
    config = json.loads((engine._options.folder.path / "config.json").read_text())
    override = {"num_hidden_layers": engine._layers}
    if config.get("layer_types"):
        override["layer_types"] = config["layer_types"][: engine._layers]
    return json.dumps(override)


def _child_function(module: str, function: str) -> ChildFunction:
    """The scheduler process begins in this module, so that it has the hooks."""
    return ChildFunction(__name__ if function == "run_scheduler" else module, function)


def run_scheduler(*args: Any, **kwargs: Any) -> None:
    """Run the scheduler process with the hooks. Raises RuntimeError if SGLang lacks one of the functions."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks = DraftHooks().hooks()
    for target, hook in hooks.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    HookRegistry.apply_hooks()
    if missing := hooks.keys() - HookRegistry._patched:
        raise RuntimeError(f"SGLang functions not hooked: {', '.join(missing)}")
    processes.run_scheduler(*args, **kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """`queries[start:end]` of a forward pass are scored; `slots` int64[keys]: the pool slots of all keys so far."""

    scoring: _Scoring
    start: int
    end: int
    slots: torch.Tensor


class _Scoring:
    """What one request scores. Kept in its sampling parameters."""

    def __init__(self, prompt_tokens: int, rows: Mapping[str, Any]) -> None:
        heads = {int(layer): numbers for layer, numbers in rows["heads"].items()}
        policy = SpecPc(capacity=rows["window"], window=rows["window"])
        self.layers = frozenset(heads)
        self.first_row = prompt_tokens - policy.window
        scored = ScoredHeads(heads, HeadReduction(rows["reduction"]))
        self.capture = RowCapture(prompt_tokens, policy, scored, torch.device("cpu"))


class DraftHooks:
    """The hooks in one scheduler process, each named after its SGLang function."""

    def __init__(self) -> None:
        self._rows: Sequence[_Rows] = ()
        self._pool: Any = None

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """The hooks by the path of the SGLang function."""
        srt = "sglang.srt."
        return {
            f"{srt}managers.scheduler.Scheduler.handle_generate_request": self.around_handle_generate_request,
            f"{srt}managers.schedule_batch.Req._compute_max_prefix_len": self.around_compute_max_prefix_len,
            f"{srt}model_executor.forward_batch_info.ForwardBatch.init_new": self.around_init_new,
            f"{srt}layers.attention.base_attn_backend.AttentionBackend.forward": self.around_forward,
            f"{srt}managers.scheduler_components.output_streamer.SchedulerOutputStreamer"
            ".stream_output": self.around_stream_output,
        }

    def around_handle_generate_request(self, original: Any, scheduler: Any, received: Any, **kwargs: Any) -> None:
        parameters = received.sampling_params.custom_params
        if isinstance(parameters, dict) and isinstance(parameters.get(KEY), str):
            rows = json.loads(parameters[KEY])
            received.sampling_params.custom_params = {KEY: _Scoring(len(received.input_ids), rows)}
        original(scheduler, received, **kwargs)

    def around_compute_max_prefix_len(self, original: Any, request: Any, input_len: int) -> int:
        longest: int = original(request, input_len)
        scoring = _scoring_of(request)
        return longest if scoring is None else min(longest, scoring.first_row)

    def around_init_new(self, original: Any, kind: type, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
        forward = original(kind, batch, runner, *args, **kwargs)
        self._pool = runner.token_to_kv_pool
        is_extend = forward.forward_mode.is_extend()
        self._rows = _rows(batch, runner.req_to_token_pool.req_to_token) if is_extend else ()
        return forward

    def around_forward(self, original: Any, backend: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(backend, *args, **kwargs)
        if self._rows:
            named = dict(zip(("q", "k", "v", "layer"), args, strict=False)) | kwargs
            for rows in self._rows:
                self._score(rows, named["q"], named["layer"])
        return result

    def _score(self, rows: _Rows, queries: torch.Tensor, layer: Any) -> None:
        if layer.layer_id not in rows.scoring.layers:
            return
        taken = queries[rows.start : rows.end].view(rows.end - rows.start, layer.tp_q_head_num, layer.qk_head_dim)
        keys = self._pool.get_key_buffer(layer.layer_id).index_select(0, rows.slots)
        rows.scoring.capture.observe(layer.layer_id, taken.transpose(0, 1)[None], keys.transpose(0, 1)[None])

    def around_stream_output(self, original: Any, streamer: Any, requests: Any, *args: Any, **kwargs: Any) -> Any:
        for request in requests:
            scoring = _scoring_of(request)
            if scoring is not None and request.finished() and request.customized_info is None:
                request.customized_info = {KEY: [scoring.capture.importance()[0]]}
        return original(streamer, requests, *args, **kwargs)


def _scoring_of(request: Any) -> _Scoring | None:
    parameters = request.sampling_params.custom_params
    return parameters.get(KEY) if isinstance(parameters, dict) else None


def _rows(batch: Any, req_to_token: torch.Tensor) -> list[_Rows]:
    found, offset = [], 0
    for request, prefix, length in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
        scoring = _scoring_of(request)
        if scoring is not None and prefix + length > scoring.first_row:
            skipped = max(0, scoring.first_row - prefix)
            slots = req_to_token[request.kv.req_pool_idx, : prefix + length].long()
            found.append(_Rows(scoring, offset + skipped, offset + length, slots))
        offset += length
    return found
