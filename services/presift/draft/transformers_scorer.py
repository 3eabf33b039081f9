"""A scorer on transformers, for any decoder that uses its public attention interface.

One chunked prefill serves both the scored rows and the lookahead. The output head runs on one position, and only to
generate a token. Weights are safetensors; code comes from transformers alone.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from presift.core.errors import InvalidRequest
from presift.core.plan import ModelInfo
from presift.draft import attention
from presift.draft.attention import RowCapture
from presift.draft.scorer import Cancel, ScoreResult, ScoreTask, ScoreTimings, check_layers
from presift.draft.supported import check_supported
from presift.models import torchvision_ops
from presift.models.folder import ModelFolder
from presift.telemetry.tracing import span

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TransformersScorer:
    """Loads the model on construction, which takes seconds. Raises InvalidRequest if the model cannot be scored.

    `chunk_tokens`: how many tokens are read per step. It bounds memory and the time until a cancelled call stops.
    """

    def __init__(
        self, folder: ModelFolder, dtype: str = "float32", device: str = "cpu", chunk_tokens: int = 512
    ) -> None:
        torchvision_ops.declare_missing()
        # transformers must be imported after declare_missing.
        from transformers import AutoConfig, DynamicCache  # noqa: PLC0415

        config = _config(AutoConfig, folder)
        check_supported(config.get_text_config(decoder=True))
        self._device = torch.device(device)
        self._chunk_tokens = chunk_tokens
        self._model = _load(folder, dtype, self._device)
        self._body = self._model.base_model
        self._head = self._model.get_output_embeddings()
        self._new_cache = DynamicCache
        self._end_ids = _end_ids(self._model)
        self._info = _info(folder, dtype, config.get_text_config(decoder=True))

    @property
    def info(self) -> ModelInfo:
        return self._info

    def score(self, task: ScoreTask, cancel: Cancel) -> ScoreResult:
        """See `Scorer.score`."""
        capture = self._capture(task)
        with torch.inference_mode():
            reading = _PromptReader(self._body, self._new_cache(config=self._body.config), capture)
            started = time.perf_counter()
            with span("prefill", prompt_tokens=task.prompt_tokens):
                hidden = self._prefill(task, reading, cancel)
            prefilled = time.perf_counter()
            with span("lookahead", lookahead_tokens=task.generated_tokens):
                generated = self._look_ahead(task, reading, hidden, cancel)
            finished = time.perf_counter()
        importance, mass = capture.importance(self._info.layers) if capture else (None, None)
        timings = ScoreTimings((prefilled - started) * 1e3, (finished - prefilled) * 1e3)
        return ScoreResult(importance, mass, tuple(generated[: task.lookahead_tokens]), timings)

    def _capture(self, task: ScoreTask) -> RowCapture | None:
        if task.policy is None:
            return None
        check_layers(task.policy, self._info.layers)
        return RowCapture(task.prompt_tokens, task.policy, self._device)

    def _prefill(self, task: ScoreTask, reading: _PromptReader, cancel: Cancel) -> torch.Tensor:
        """The last position's hidden state, [1, 1, hidden]."""
        ids = torch.from_numpy(task.token_ids.astype("int64"))[None].to(self._device)
        # Equal chunks, because a short last one would cost nearly as much as a full one.
        for chunk in ids.tensor_split(-(-task.prompt_tokens // self._chunk_tokens), dim=1):
            cancel.check()
            hidden = reading.read(chunk)
        return hidden

    def _look_ahead(self, task: ScoreTask, reading: _PromptReader, hidden: torch.Tensor, cancel: Cancel) -> list[int]:
        """Generate greedy tokens until the task has enough or the model ends its answer. The first
        `scored_lookahead_tokens` are read back and scored.
        """
        generated: list[int] = []
        while len(generated) < task.generated_tokens:
            cancel.check()
            token = self._head(hidden).argmax(-1)  # [1, 1]
            generated.append(int(token))
            scored = len(generated) <= task.scored_lookahead_tokens
            if generated[-1] in self._end_ids or not (scored or len(generated) < task.generated_tokens):
                break
            hidden = reading.read(token, scored=scored)
        return generated


class _PromptReader:
    """Reads one prompt: the model's body, its KV cache and the capture."""

    def __init__(self, body: torch.nn.Module, cache: Any, capture: RowCapture | None) -> None:
        self._body, self._cache, self._capture = body, cache, capture

    def read(self, ids: torch.Tensor, *, scored: bool = True) -> torch.Tensor:
        """Read ids, int64[1, tokens], after the tokens read so far. The last hidden state, [1, 1, hidden]."""
        extra = {attention.KEYWORD: self._capture} if scored and self._capture else {}
        output = self._body(input_ids=ids, past_key_values=self._cache, use_cache=True, **extra)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden[:, -1:]


def _config(kind: Any, folder: ModelFolder) -> Any:
    try:
        return kind.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    except (KeyError, ValueError) as error:  # it needs its own code, or its model_type is unknown
        limit = f"a model that transformers supports without custom code ({type(error).__name__})"
        raise InvalidRequest("model", folder.path, limit) from None


def _load(folder: ModelFolder, dtype: str, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(
        folder.path,
        dtype=DTYPES[dtype],
        attn_implementation=attention.register(),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    return model.to(device).eval()


def _end_ids(model: Any) -> frozenset[int]:
    """The tokens that end an answer; may be empty."""
    ids = model.generation_config.eos_token_id
    return frozenset(ids if isinstance(ids, list) else () if ids is None else (ids,))


def _info(folder: ModelFolder, dtype: str, config: Any) -> ModelInfo:
    return ModelInfo(
        id=folder.id,
        # Rounding changes importance, so cached masks must not be shared between dtypes.
        revision=f"{folder.revision}-{dtype}",
        tokenizer_fingerprint=folder.tokenizer_fingerprint,
        context_tokens=config.max_position_embeddings,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        vocabulary_size=config.vocab_size,
    )
