"""Adaptive: a capacity that is only an upper bound; the fewest tokens that reach a coverage are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from presift.core.errors import InvalidRequest
from presift.core.policies.fields import at_least


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Below a policy's capacity: `min_capacity` tokens, or as many more, in steps of `step`, as reach `coverage`.

    `coverage` (0 < c <= 1) is held as the nearest float32, as it travels and as coverages are told: one that was asked
    for on one machine must not be missed by a rounding on another. Raises InvalidRequest.
    """

    coverage: float
    min_capacity: int
    step: int = 1

    def __post_init__(self) -> None:
        rounded = float(np.float32(self.coverage))
        if not 0.0 < rounded <= 1.0:
            raise InvalidRequest("adaptive.coverage", self.coverage, "0 < coverage <= 1")
        object.__setattr__(self, "coverage", rounded)
        at_least("adaptive.min_capacity", self.min_capacity, 1)
        at_least("adaptive.step", self.step, 1)

    def check_within(self, field: str, least: int, capacity: int) -> None:
        """Raise InvalidRequest, naming `field`, unless least <= min_capacity <= capacity."""
        if not least <= self.min_capacity <= capacity:
            raise InvalidRequest(f"{field}.min_capacity", self.min_capacity, f"{least}..{capacity} (the capacity)")

    def size(self, needed: int, capacity: int) -> int:
        """The fewest tokens allowed that are at least `needed`; `capacity` where none are."""
        steps = -(-max(0, needed - self.min_capacity) // self.step)
        return min(capacity, self.min_capacity + steps * self.step)

    def allows(self, tokens: int, capacity: int) -> bool:
        """Whether so many tokens may come of it."""
        return tokens >= self.min_capacity and self.size(tokens, capacity) == tokens
