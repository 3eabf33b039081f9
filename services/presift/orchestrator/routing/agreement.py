"""Agreement: how similar a compressed answer is to the full one. Pure: token ids and counted facts in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from presift.orchestrator.routing.facts import NO_FACTS, FactCount


@dataclass(frozen=True, slots=True)
class Agreement:
    """`overlap`: the tokens that both have in the same order, as a share of their mean length, 0..1.

    `first_divergence`: the index of the first token that differs, or that one of them lacks; None where all are equal.
    `facts`: the full answer's facts, and how many of them the compressed answer has.
    """

    overlap: float
    first_divergence: int | None
    facts: FactCount = NO_FACTS

    @property
    def degree(self) -> float:
        """0..1: the mean over the facts and the wording, where each fact counts 1 if found and the wording its overlap.

        Without facts it is the overlap. The more facts, the less it matters in which order and words they are told.
        """
        return (self.overlap + self.facts.found) / (1 + self.facts.total)

    @property
    def fact_share(self) -> float | None:
        """The share of the full answer's facts that the compressed answer has, 0..1; None without facts."""
        return self.facts.found / self.facts.total if self.facts.total else None

    @property
    def is_exact(self) -> bool:
        return self.first_divergence is None


def agreement(compressed: Sequence[int], full: Sequence[int], facts: FactCount = NO_FACTS) -> Agreement:
    """Symmetric but for the facts. Two empty answers agree."""
    tokens = len(compressed) + len(full)
    overlap = 2 * _common(compressed, full) / tokens if tokens else 1.0
    pairs = enumerate(zip_longest(compressed, full))
    return Agreement(overlap, next((index for index, (one, other) in pairs if one != other), None), facts)


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
