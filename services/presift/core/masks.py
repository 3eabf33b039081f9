"""Masks: which prompt tokens or KV pairs are kept. Bool arrays in memory, bitsets on the wire (LSB first)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class TokenMask:
    """`kept`: bool[prompt_tokens], read-only. Raises InvalidRequest if it is empty or not one-dimensional."""

    kept: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.kept.ndim != 1 or self.kept.size == 0:
            raise InvalidRequest("token_mask", f"shape {self.kept.shape}", "one flag per prompt token")
        object.__setattr__(self, "kept", _frozen(self.kept))

    @classmethod
    def from_bits(cls, bits: bytes, prompt_tokens: int) -> TokenMask:
        """Read the wire form. Raises InvalidRequest if its length or its padding is wrong."""
        return cls(_unpack(bits, (prompt_tokens,), "token_mask.kept"))

    @property
    def prompt_tokens(self) -> int:
        return int(self.kept.size)

    @property
    def kept_tokens(self) -> int:
        return int(np.count_nonzero(self.kept))

    @property
    def indices(self) -> NDArray[np.int64]:
        """int64[kept_tokens], ascending."""
        return np.flatnonzero(self.kept)

    def to_bits(self) -> bytes:
        """The wire form: ceil(prompt_tokens / 8) bytes."""
        return np.packbits(self.kept, bitorder="little").tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenMask) and np.array_equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.prompt_tokens, self.to_bits()))


@dataclass(frozen=True, slots=True, eq=False)
class KvMask:
    """`kept`: bool[layers, kv_heads, prompt_tokens], read-only; 1 in the first two axes means the same for all."""

    kept: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.kept.ndim != 3 or self.kept.size == 0:
            raise InvalidRequest("kv_mask", f"shape {self.kept.shape}", "[layers, kv_heads, prompt_tokens]")
        object.__setattr__(self, "kept", _frozen(self.kept))

    @classmethod
    def uniform(cls, mask: TokenMask) -> KvMask:
        """The same tokens in every layer and head."""
        return cls(mask.kept[None, None, :])

    @classmethod
    def from_bits(cls, bits: bytes, layers: int, kv_heads: int, prompt_tokens: int) -> KvMask:
        """Read the wire form. Raises InvalidRequest if its length or its padding is wrong."""
        return cls(_unpack(bits, (layers, kv_heads, prompt_tokens), "kv_mask.kept"))

    def to_bits(self) -> bytes:
        """The wire form: each row of prompt_tokens bits padded to a byte."""
        return np.packbits(self.kept, axis=2, bitorder="little").tobytes()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as bits, which take an eighth: ranks of tensor parallelism send each other masks."""
        return KvMask.from_bits, (self.to_bits(), *self.kept.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KvMask) and np.array_equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.kept.shape, self.to_bits()))


def _frozen(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    copy = np.array(flags, dtype=np.bool_)
    copy.setflags(write=False)
    return copy


def _unpack(bits: bytes, shape: tuple[int, ...], field: str) -> NDArray[np.bool_]:
    # A peer chose these numbers: their product may exceed an int64.
    rows, width = math.prod(shape[:-1]), shape[-1]
    row_bytes = (width + 7) // 8
    if not rows * width:
        raise InvalidRequest(field.removesuffix(".kept"), f"shape {shape}", "one flag at least")
    if len(bits) != rows * row_bytes:
        raise InvalidRequest(field, f"{len(bits)} bytes", f"{rows * row_bytes} bytes")
    packed = np.frombuffer(bits, dtype=np.uint8).reshape(rows, row_bytes)
    flags = np.unpackbits(packed, axis=1, bitorder="little").view(np.bool_)
    if flags[:, width:].any():
        raise InvalidRequest(field, "set bits past the prompt", "zero padding")
    return flags[:, :width].reshape(shape)
