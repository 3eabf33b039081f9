"""Which models can be scored: decoders whose every layer attends to all earlier tokens, by a plain softmax.

Read from the configuration, before any weight is loaded. What a configuration does not show, the warm-up does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from presift.core.errors import InvalidRequest

# What makes a model unfit, and how its configuration shows it.
_UNFIT: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("an encoder-decoder", lambda config: getattr(config, "is_encoder_decoder", False)),
    ("multi-head latent attention", lambda config: getattr(config, "kv_lora_rank", None)),
    ("soft-capped attention", lambda config: getattr(config, "attn_logit_softcapping", None)),
    ("sliding-window attention", lambda config: getattr(config, "sliding_window", None)),
    ("attention sinks", lambda config: getattr(config, "sinks", None) or config.model_type == "gpt_oss"),
    (
        "layers without full attention",
        lambda config: set(getattr(config, "layer_types", None) or ()) - {"full_attention"},
    ),
)


def refuse_unsupported(config: Any) -> None:
    """Raise InvalidRequest that names the reason if the (text) configuration is of a model that cannot be scored."""
    for reason, shows in _UNFIT:
        if shows(config):
            raise InvalidRequest(
                "model", f"{config.model_type} with {reason}", "a decoder with full attention in every layer"
            )
