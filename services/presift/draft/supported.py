"""Which models can be scored: decoders with full softmax attention to all earlier tokens in every layer.

Checked on the configuration before any weight is loaded. The warm-up finds what a configuration does not show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from presift.core.errors import InvalidRequest

# Unsupported features and how a configuration shows them.
_UNSUPPORTED: tuple[tuple[str, Callable[[Any], Any]], ...] = (
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


def check_supported(config: Any) -> None:
    """Raise InvalidRequest, with the reason, if a model with this (text) configuration cannot be scored."""
    for reason, shows in _UNSUPPORTED:
        if shows(config):
            raise InvalidRequest(
                "model", f"{config.model_type} with {reason}", "a decoder with full attention in every layer"
            )
