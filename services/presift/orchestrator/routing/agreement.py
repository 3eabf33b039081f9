"""Agreement: how similar two answers to one prompt are. Pure: token ids in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class Agreement:
    """`overlap`: the tokens that both have in the same order, as a share of their mean length, 0..1.

    `first_divergence`: the index of the first token that differs, or that one of them lacks; None where all are equal.
    """

    overlap: float
    first_divergence: int | None

    @property
    def is_exact(self) -> bool:
        return self.first_divergence is None


def agreement(first: Sequence[int], second: Sequence[int]) -> Agreement:
    """Symmetric. Two empty answers agree."""
    tokens = len(first) + len(second)
    overlap = 2 * _common(first, second) / tokens if tokens else 1.0
    pairs = enumerate(zip_longest(first, second))
    return Agreement(overlap, next((index for index, (one, other) in pairs if one != other), None))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common subsequence, a row of the table at a time in the bits of one number.

    H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004.
    """
    places: dict[int, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    everything = row = (1 << len(first)) - 1
    for token in second:
        found = row & places.get(token, 0)
        row = (row + found | row - found) & everything
    return len(first) - row.bit_count()
