"""What a model's configuration says about its layers, before any weight is loaded.

Layers score if they attend to all earlier tokens. Others may see a window of the latest tokens, or keep a state instead
of keys and values. The warm-up finds what a configuration does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from presift.core.errors import InvalidRequest

# Unsupported features and how a configuration shows them.
_UNSUPPORTED: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("an encoder", lambda config: getattr(config, "is_encoder_decoder", False)),
    ("attention to later tokens", lambda config: getattr(config, "use_bidirectional_attention", None) in (True, "all")),
    ("no maximum length", lambda config: getattr(config, "max_position_embeddings", None) is None),
)
# Names of `layer_types` in transformers. A hybrid layer also has a state.
_FULL = frozenset({"full_attention", "attention", "hybrid"})
# And the setting that says how many tokens such a layer sees.
_WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
# Models whose states continue with the next chunk in transformers. Others start anew, unless a chunk is one token.
_CARRIES_STATE = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
# Rotations that depend on the length of the whole prompt.
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class Layers:
    """`count`: the loaded layers. `full`: those that attend to all earlier tokens, in order; at least one.

    `reads_in_chunks`: False if the model must read a whole prompt in one call. `is_only_kv`: whether keys and values
    are all that is kept of a prompt, so that a later prompt can continue from any token of it.
    """

    count: int
    full: tuple[int, ...]
    reads_in_chunks: bool = True
    is_only_kv: bool = True

    def limits(self) -> Iterator[str]:
        """What an operator should know of a draft with these layers."""
        if len(self.full) < self.count:
            yield f"only layers with full attention score: {', '.join(map(str, self.full))}"
        if self.full[-1] < self.count // 2:
            yield f"no layer of the upper half scores; set the orchestrator's --start-layer <= {self.full[-1]}"
        if not self.is_only_kv:
            yield "nothing is kept of earlier prompts: prefix_cache_mib has no effect"
        if not self.reads_in_chunks:
            yield "a prompt is read in one step: chunk_tokens has no effect, and a cancelled request stops at its end"


def layers_of(config: Any, count: int) -> Layers:
    """The first `count` layers of a model with this (text) configuration.

    Raises InvalidRequest, with the reason, if they cannot score.
    """
    for reason, shows in _UNSUPPORTED:
        if shows(config):
            raise InvalidRequest("model", f"{config.model_type} with {reason}", "a causal decoder")
    kinds = _kinds(config)[:count]
    full = tuple(layer for layer, kind in enumerate(kinds) if _is_full(config, kind))
    if not full:
        limit = "a model with full attention in at least one of the loaded layers"
        raise InvalidRequest("model", f"{config.model_type} with {_described(config, kinds)}", limit)
    shares_kv = bool(getattr(config, "num_kv_shared_layers", 0))
    if shares_kv and count < config.num_hidden_layers:
        limit = f"0..{config.num_hidden_layers - 1}, because the last layers use keys of earlier ones"
        raise InvalidRequest("layers", f"0..{count - 1}", limit)
    has_state = not all(kind in _FULL - {"hybrid"} or kind in _WINDOWED for kind in kinds)
    is_fixed = not _has_length_dependent_rope(config)
    return Layers(
        count,
        full,
        reads_in_chunks=is_fixed and (not has_state or config.model_type in _CARRIES_STATE),
        is_only_kv=is_fixed and not has_state and not shares_kv,
    )


def truncate(config: Any, count: int) -> None:
    """Reduce a (text) configuration to its first `count` layers: their number and the lists of a value per layer."""
    all_layers, config.num_hidden_layers = config.num_hidden_layers, count
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == all_layers:
            setattr(config, name, value[:count])


def _kinds(config: Any) -> tuple[str, ...]:
    """The kind of each layer. Without `layer_types`, a window is that of all layers (Mistral, Phi-3)."""
    if kinds := getattr(config, "layer_types", None):
        return tuple(kinds)
    has_window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return ("sliding_attention" if has_window else "full_attention",) * int(config.num_hidden_layers)


def _is_full(config: Any, kind: str) -> bool:
    window = _window(config, kind)
    return kind in _FULL or (window is not None and window >= config.max_position_embeddings)


def _window(config: Any, kind: str) -> int | None:
    return getattr(config, _WINDOWED[kind], None) if kind in _WINDOWED else None


def _described(config: Any, kinds: tuple[str, ...]) -> str:
    """Like: layers 0..3 sliding_attention (window 4096), layer 4 mamba."""
    parts, first = list[str](), 0
    for layer, kind in enumerate(kinds):
        if layer + 1 == len(kinds) or kinds[layer + 1] != kind:
            name = f"layer {layer}" if layer == first else f"layers {first}..{layer}"
            window = _window(config, kind)
            parts.append(f"{name} {kind}" + ("" if window is None else f" ({window} tokens)"))
            first = layer + 1
    return ", ".join(parts)


def _has_length_dependent_rope(config: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(value.get("rope_type") in _LENGTH_DEPENDENT_ROPE for value in each)
