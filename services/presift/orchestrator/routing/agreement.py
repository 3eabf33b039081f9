"""Agreement: how far two answers to one prompt are the same. Pure: token ids in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class Agreement:
    """`overlap`: the tokens that both have in the same order, as a share of what they have on the average, 0..1.

    `first_divergence`: the index of the first token that differs, or that one of them lacks; None where all are equal.
    """

    overlap: float
    first_divergence: int | None

    @property
    def is_exact(self) -> bool:
        return self.first_divergence is None


def agreement(ours: Sequence[int], theirs: Sequence[int]) -> Agreement:
    """The same either way round. Two empty answers agree."""
    tokens = len(ours) + len(theirs)
    overlap = 2 * _common(ours, theirs) / tokens if tokens else 1.0
    pairs = enumerate(zip_longest(ours, theirs))
    return Agreement(overlap, next((index for index, (our, their) in pairs if our != their), None))


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The length of the longest common subsequence, a row of the table at a time in the bits of one number.

    H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004.
    """
    places: dict[int, int] = {}
    for index, token in enumerate(ours):
        places[token] = places.get(token, 0) | 1 << index
    everything = row = (1 << len(ours)) - 1
    for token in theirs:
        found = row & places.get(token, 0)
        row = (row + found | row - found) & everything
    return len(ours) - row.bit_count()
