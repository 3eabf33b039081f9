"""A token mask as bytes: a bitset, or the gaps between kept tokens in the narrowest integers that hold them.

Which one is smaller depends on how many tokens are kept and how they cluster, so both are offered to the codec.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from presift.core.masks import TokenMask


class MaskCoding(IntEnum):
    """How the bytes are read; the numbers are stored. GAPS_n: for each kept token, how many were dropped before it."""

    BITSET = 0
    GAPS_8 = 1
    GAPS_16 = 2
    GAPS_32 = 4


def candidates(mask: TokenMask) -> tuple[tuple[MaskCoding, bytes], ...]:
    """The bitset of `mask`, and its gaps unless they are larger."""
    bits = mask.to_bits()
    gaps = np.diff(mask.indices, prepend=-1) - 1
    coding = _narrowest(int(gaps.max(initial=0)))
    forms = ((MaskCoding.BITSET, bits), (coding, gaps.astype(_dtype(coding)).tobytes()))
    return forms if len(forms[1][1]) <= len(bits) else forms[:1]


def decode_mask(coding: MaskCoding, data: bytes, prompt_tokens: int) -> TokenMask:
    """Read either form. The caller bounds `prompt_tokens`: that many bytes are allocated.

    Raises ValueError or InvalidRequest if `data` is not a mask over `prompt_tokens`.
    """
    if coding is MaskCoding.BITSET:
        return TokenMask.from_bits(data, prompt_tokens)
    gaps = np.frombuffer(data, dtype=_dtype(coding)).astype(np.int64)
    indices = np.cumsum(gaps + 1) - 1
    if indices.size and indices[-1] >= prompt_tokens:
        raise ValueError("a kept token lies past the prompt")
    return TokenMask.from_indices(indices, prompt_tokens)


def _narrowest(greatest_gap: int) -> MaskCoding:
    if greatest_gap < 1 << 8:
        return MaskCoding.GAPS_8
    return MaskCoding.GAPS_16 if greatest_gap < 1 << 16 else MaskCoding.GAPS_32


def _dtype(coding: MaskCoding) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"<u{coding.value}")
