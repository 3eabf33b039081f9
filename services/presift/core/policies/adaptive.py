"""Adaptive capacity: keeps the fewest tokens that reach a coverage, up to the policy's capacity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from presift.core.errors import InvalidRequest
from presift.core.policies.fields import at_least


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Keep `min_capacity` tokens, and more in steps of `step` until they reach `coverage`, up to the policy's capacity.

    `coverage` (0 < c <= 1) is rounded to float32, as it is on the wire and as coverages are reported, so that rounding
    on another machine cannot miss it. Raises InvalidRequest.
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
        """The smallest allowed number of tokens that is at least `needed`, or `capacity` if none is."""
        steps = -(-max(0, needed - self.min_capacity) // self.step)
        return min(capacity, self.min_capacity + steps * self.step)

    def allows(self, tokens: int, capacity: int) -> bool:
        """Whether `size` can return this number of tokens."""
        return tokens >= self.min_capacity and self.size(tokens, capacity) == tokens
