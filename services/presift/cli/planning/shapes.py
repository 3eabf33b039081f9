"""Shapes of models, from config.json or by name: the number of parameters, and the bytes of KV for a token.

Only dense decoders with grouped-query attention. Other models are refused, because the numbers would be wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presift.core.errors import InvalidRequest

_BYTES = 2  # bfloat16, for weights and KV


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder. `head_width`: of one attention head; `tied`: input and output embeddings are one matrix."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner_width: int
    vocabulary: int
    tied: bool

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "kv_heads", "head_width", "inner_width", "vocabulary"):
            if getattr(self, field) < 1:
                raise InvalidRequest(field, getattr(self, field), "at least 1", f"{self.name}: {field} is below 1")

    @property
    def layer_parameters(self) -> int:
        """The parameters used for every prompt token."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.inner_width)

    @property
    def head_parameters(self) -> int:
        """The further parameters used for every generated token."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.head_parameters * (1 if self.tied else 2)

    @property
    def weight_bytes(self) -> int:
        return self.parameters * _BYTES

    @property
    def kv_bytes(self) -> int:
        """The KV of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width * _BYTES


# From their publishers' config.json.
KNOWN = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49_152, True),
        Shape("qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151_936, True),
        Shape("qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 151_936, True),
        Shape("qwen2.5-3b", 36, 2048, 16, 2, 128, 11_008, 151_936, True),
        Shape("qwen2.5-7b", 28, 3584, 28, 4, 128, 18_944, 152_064, False),
        Shape("qwen2.5-14b", 48, 5120, 40, 8, 128, 13_824, 152_064, False),
        Shape("qwen2.5-32b", 64, 5120, 40, 8, 128, 27_648, 152_064, False),
        Shape("qwen2.5-72b", 80, 8192, 64, 8, 128, 29_568, 152_064, False),
        Shape("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128_256, True),
        Shape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14_336, 128_256, False),
        Shape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28_672, 128_256, False),
    )
}
_UNSUPPORTED = ("kv_lora_rank", "num_experts", "num_local_experts", "n_routed_experts", "state_size")


def shape_of(field: str, model: str) -> Shape:
    """The shape of a folder with a config.json, or of a name in KNOWN. Raises InvalidRequest, naming `field`."""
    if model in KNOWN:
        return KNOWN[model]
    config = Path(model).expanduser() / "config.json"
    if not config.is_file():
        raise InvalidRequest(field, model, f"a folder with a config.json, or one of {', '.join(KNOWN)}")
    try:
        return _read(Path(model).name, json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidRequest(field, model, f"a folder with the config.json of a dense decoder ({error})") from None


def _read(name: str, config: dict[str, Any]) -> Shape:
    unsupported = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        unsupported.append("sliding_window")
    if unsupported:
        raise ValueError(f"{', '.join(unsupported)} is not supported")
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Shape(
        name=name,
        layers=int(config["num_hidden_layers"]),
        width=width,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=int(config.get("head_dim") or width // heads),
        inner_width=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
