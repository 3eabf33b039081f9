"""The one deadline of a request: made where the request arrives, asked by every stage for the time that is left."""

from __future__ import annotations

import time
from dataclasses import dataclass

from presift.core.errors import DeadlineExceeded

# A caller's own clock runs ahead of ours by the way of the request, and it may hang up first.
_SAME_MOMENT_S = 0.05


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at_s` on the clock of `time.monotonic`, None for none."""

    at_s: float | None = None

    @classmethod
    def within(cls, left_s: float | None) -> Deadline:
        """That many seconds from now."""
        return cls(None if left_s is None else time.monotonic() + left_s)

    def left_s(self) -> float | None:
        """Seconds, > 0. Raises DeadlineExceeded: nothing is to go on downstream after it."""
        if self.at_s is None:
            return None
        left_s = self.at_s - time.monotonic()
        if left_s <= 0.0:
            raise DeadlineExceeded("the deadline passed")
        return left_s

    @property
    def is_here(self) -> bool:
        """Whether who leaves now leaves because of it."""
        return self.at_s is not None and self.at_s - time.monotonic() <= _SAME_MOMENT_S


NO_DEADLINE = Deadline()
