"""A scorer on transformers, for any decoder that uses its public attention interface.

One chunked prefill serves both the scored rows and the lookahead. The output head runs on one position, and only to
generate a token. Weights are safetensors; code comes from transformers alone.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from presift.core.errors import InvalidRequest
from presift.core.plan import ModelInfo
from presift.draft import attention, int8_linear
from presift.draft.attention import LayersDone, Observer, RowCapture, ScoredHeads, scored_heads
from presift.draft.head_profile import HeadProfile, check_fits
from presift.draft.layers import Layers, layers_of, truncate
from presift.draft.prefix_cache import PrefixCache, ReadPrompt
from presift.draft.scorer import Cancel, ScoreResult, ScoreTask, ScoreTimings
from presift.models import torchvision_ops
from presift.models.dtype import computes_int8, native_dtype
from presift.models.folder import ModelFolder
from presift.telemetry.tracing import span

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TransformersScorer:
    """Loads the model on construction, which takes seconds. Raises InvalidRequest if the model cannot be scored.

    `dtype`: one of DTYPES, or int8 for the linear layers and the device's native type for the rest; on a CPU only.
    `chunk_tokens`: how many tokens are read per step. It bounds memory and the time until a cancelled call stops.
    `layers`: load only so many first layers; such a draft scores, but generates no tokens. `profile`: the heads that a
    policy with CALIBRATED heads scores by. `prefix_cache_bytes`: how much KV of earlier prompts is kept. Models with
    other states keep nothing, and some of them read a whole prompt in one step (see `Layers`).
    """

    def __init__(
        self,
        folder: ModelFolder,
        dtype: str = "float32",
        device: str = "cpu",
        chunk_tokens: int = 512,
        *,
        layers: int | None = None,
        profile: HeadProfile | None = None,
        prefix_cache_bytes: int = 0,
    ) -> None:
        if dtype == "int8" and not computes_int8(device):
            raise InvalidRequest("dtype", dtype, f"float32 or bfloat16 (int8 needs a CPU with VNNI, not {device})")
        torchvision_ops.declare_missing()
        # transformers must be imported after declare_missing.
        from transformers import AutoConfig  # noqa: PLC0415

        from presift.draft.reading_cache import new_cache  # noqa: PLC0415

        config = _config(AutoConfig, folder)
        text_config = config.get_text_config(decoder=True)
        self.layers = layers_of(text_config, _check_count(layers, text_config.num_hidden_layers))
        if profile is not None:
            check_fits(profile, folder, text_config, self.layers)
        self._heads = None if profile is None else ScoredHeads(profile.by_layer, profile.reduction)
        computed = f"int8-{native_dtype(device)}" if dtype == "int8" else dtype
        self._info = _info(folder, computed, text_config, self.layers.count, profile)
        self._device = torch.device(device)
        self._chunk_tokens = chunk_tokens if self.layers.reads_in_chunks else sys.maxsize
        self._model = _load(folder, dtype, self._device, config, self.layers)
        self._body = _body(self._model)
        if dtype == "int8":
            int8_linear.convert(self._body)
            if native_dtype(device) == "float32":
                # Not before: the linear layers would take four times the memory.
                self._model.float()
        self._head: Any = self._model.get_output_embeddings() if self._info.can_look_ahead else None
        self._kept = PrefixCache(prefix_cache_bytes if self.layers.is_only_kv else 0)
        self._new_cache = partial(new_cache, self._body.config, keeps_windows=self._kept.max_bytes > 0)
        self._end_ids = _end_ids(self._model) if self._info.can_look_ahead else frozenset()

    @property
    def info(self) -> ModelInfo:
        return self._info

    def score(self, task: ScoreTask, cancel: Cancel, observer: Observer | None = None) -> ScoreResult:
        """See `Scorer.score`. `observer` sees the attention of every layer."""
        try:
            return self._score(task, cancel, observer)
        except torch.OutOfMemoryError:
            if not self._kept.nbytes:
                raise
            log.warning("out of memory with %d tokens; the KV of earlier prompts is dropped", task.prompt_tokens)
            self._kept.clear()
        # Outside of the handler, whose traceback keeps the tensors of the first attempt.
        return self._score(task, cancel, observer)

    def _score(self, task: ScoreTask, cancel: Cancel, observer: Observer | None) -> ScoreResult:
        capture = self._capture(task, stops=observer is None and not task.generated_tokens)
        observers = [each for each in (capture, observer) if each is not None]
        with torch.inference_mode():
            started = time.perf_counter()
            cache = self._new_cache()
            layers = self._layers_read(capture)
            cached_tokens = self._restore(task, cache, layers)
            reading = _PromptReader(self._body, cache, cached_tokens, observers)
            with span("prefill", prompt_tokens=task.prompt_tokens):
                hidden = self._prefill(task, cached_tokens, reading, cancel)
            self._keep(task, cache, layers)
            prefilled = time.perf_counter()
            with span("lookahead", lookahead_tokens=task.generated_tokens):
                generated = self._look_ahead(task, reading, hidden, cancel)
            finished = time.perf_counter()
        importance, mass = capture.importance() if capture else (None, None)
        timings = ScoreTimings((prefilled - started) * 1e3, (finished - prefilled) * 1e3)
        return ScoreResult(importance, mass, tuple(generated[: task.lookahead_tokens]), timings, cached_tokens)

    def _layers_read(self, capture: RowCapture | None) -> int:
        """How many layers get the KV of the prompt."""
        stops_at = None if capture is None else capture.last_layer
        return self._info.layers if stops_at is None else stops_at + 1

    def _restore(self, task: ScoreTask, cache: Any, layers: int) -> int:
        """Put what is known of the prompt's beginning into `cache`; returns its number of tokens.

        The window's rows, and the last token, are always read: their queries are not kept.
        """
        if not self._kept.nbytes:
            return 0
        known, kv = self._kept.find(task.salt, task.token_ids, layers)
        tokens = min(known, task.prompt_tokens - (1 if task.policy is None else task.policy.window))
        for layer, (keys, values) in enumerate(kv if tokens > 0 else ()):
            cache.update(keys[:, :, :tokens], values[:, :, :tokens], layer)
        return max(0, tokens)

    def _keep(self, task: ScoreTask, cache: Any, layers: int) -> None:
        if not self._kept.max_bytes:
            return
        kv = [(layer.keys, layer.values) for layer in cache.layers[:layers]]
        try:
            self._kept.put(ReadPrompt(task.salt, task.token_ids, kv))
        except torch.OutOfMemoryError:
            log.warning("out of memory: the KV of %d tokens and of earlier prompts is not kept", task.prompt_tokens)
            self._kept.clear()

    def _capture(self, task: ScoreTask, *, stops: bool) -> RowCapture | None:
        if task.policy is None:
            return None
        heads = scored_heads(task.policy, self.layers, self._heads)
        return RowCapture(task.prompt_tokens, task.policy, heads, self._device, stops=stops)

    def _prefill(
        self, task: ScoreTask, cached_tokens: int, reading: _PromptReader, cancel: Cancel
    ) -> torch.Tensor | None:
        """Read the tokens after the cached ones. The last hidden state, [1, 1, hidden]; None if not all layers ran."""
        ids = torch.from_numpy(task.token_ids[cached_tokens:].astype("int64"))[None].to(self._device)
        # Equal chunks, because a short last one would cost nearly as much as a full one.
        for chunk in ids.tensor_split(-(-ids.shape[1] // self._chunk_tokens), dim=1):
            cancel.check()
            hidden = reading.read(chunk)
        return hidden

    def _look_ahead(
        self, task: ScoreTask, reading: _PromptReader, hidden: torch.Tensor | None, cancel: Cancel
    ) -> list[int]:
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
    """Reads one prompt: the model's body, its cache of the first tokens, and the capture."""

    def __init__(self, body: torch.nn.Module, cache: Any, tokens_read: int, observers: Sequence[Observer]) -> None:
        self._body, self._cache, self._tokens_read, self._observers = body, cache, tokens_read, observers

    def read(self, ids: torch.Tensor, *, scored: bool = True) -> torch.Tensor | None:
        """Read ids, int64[1, tokens], after the tokens read so far. The last hidden state, [1, 1, hidden].

        None if the observer ended the call before the last layer.
        """
        first, self._tokens_read = self._tokens_read, self._tokens_read + ids.shape[1]
        positions = torch.arange(first, self._tokens_read, device=ids.device)[None]
        try:
            with attention.observed_by(self._observers if scored else ()):
                # Positions, because Bamba would count from 0 again.
                output = self._body(input_ids=ids, position_ids=positions, past_key_values=self._cache, use_cache=True)
        except LayersDone:
            return None
        hidden: torch.Tensor = output.last_hidden_state
        return hidden[:, -1:]


def _config(kind: Any, folder: ModelFolder) -> Any:
    try:
        return kind.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    except (KeyError, ValueError) as error:  # it needs its own code, or its model_type is unknown
        limit = f"a model that transformers supports without custom code ({type(error).__name__})"
        raise InvalidRequest("model", folder.path, limit) from None
    except Exception as error:  # a field has a wrong type, or contradicts another
        raise InvalidRequest("model", folder.path, f"a configuration that transformers accepts ({error})") from error


def _check_count(layers: int | None, all_layers: int) -> int:
    """The number of layers to load. Raises InvalidRequest."""
    if layers is not None and not 1 <= layers <= all_layers:
        raise InvalidRequest("layers", f"0..{layers - 1}", f"0..{all_layers - 1} at most, the model's layers")
    return all_layers if layers is None else layers


def _load(folder: ModelFolder, dtype: str, device: torch.device, config: Any, layers: Layers) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM  # noqa: PLC0415

    text_config, kind = config.get_text_config(decoder=True), AutoModelForCausalLM
    if layers.count < text_config.num_hidden_layers:
        # Without its last layers a model cannot generate, so its output head is not loaded either.
        kind = AutoModel
        truncate(text_config, layers.count)
    try:
        model, report = kind.from_pretrained(
            folder.path,
            config=config,
            dtype=DTYPES["bfloat16" if dtype == "int8" else dtype],
            attn_implementation=attention.register(),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise InvalidRequest("model", text_config.model_type, _loadable(error)) from error
    if report["missing_keys"]:  # transformers fills them with random numbers
        limit = f"a model whose files contain all its weights (missing: {min(report['missing_keys'])})"
        raise InvalidRequest("model", text_config.model_type, limit)
    return model.to(device).eval()


def _loadable(error: Exception) -> str:
    """What a model must be that transformers loads, which failed with `error`."""
    if isinstance(error, KeyError) and error.args == (attention.IMPLEMENTATION,):
        return "a model that uses transformers' attention interface"
    text = str(error).partition(". ")[0]  # further sentences may list all models
    return f"a model that transformers can load ({type(error).__name__}: {text})"


def _body(model: Any) -> Any:
    """The model without its output head."""
    # Llama 4 does not name its body as transformers expects.
    return getattr(model, "model", model) if model.base_model is model else model.base_model


def _end_ids(model: Any) -> frozenset[int]:
    """The tokens that end an answer; may be empty."""
    ids = model.generation_config.eos_token_id
    return frozenset(ids if isinstance(ids, list) else () if ids is None else (ids,))


def _info(folder: ModelFolder, dtype: str, config: Any, layers: int, profile: HeadProfile | None) -> ModelInfo:
    is_whole = layers == config.num_hidden_layers
    # Masks of different dtypes, layers or heads differ, so they must not be shared by a cache.
    parts = (folder.revision, dtype, "" if is_whole else f"layers{layers}", f"heads{profile.digest}" if profile else "")
    return ModelInfo(
        id=folder.id,
        revision="-".join(filter(None, parts)),
        tokenizer_fingerprint=folder.tokenizer_fingerprint,
        context_tokens=config.max_position_embeddings,
        layers=layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        vocabulary_size=config.vocab_size,
        head_profile="" if profile is None else profile.digest,
        all_layers=0 if is_whole else config.num_hidden_layers,
    )
