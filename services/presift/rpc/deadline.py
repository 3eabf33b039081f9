"""The deadline of a request: made where the request arrives; every stage reads the remaining time from it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from presift.core.errors import DeadlineExceeded

# The caller's own deadline passes a little earlier than this one: it started before the request arrived.
_SAME_MOMENT_S = 0.05


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at_s` is on the clock of `time.monotonic`; None is no deadline."""

    at_s: float | None = None

    @classmethod
    def within(cls, left_s: float | None) -> Deadline:
        """The deadline that many seconds from now; None is no deadline."""
        return cls(None if left_s is None else time.monotonic() + left_s)

    def at_most(self, left_s: float | None) -> Deadline:
        """This deadline, or the one that many seconds from now if that is sooner; None changes nothing."""
        other = Deadline.within(left_s)
        if self.at_s is None or other.at_s is None:
            return other if self.at_s is None else self
        return min(self, other, key=lambda deadline: deadline.at_s or 0.0)

    def check(self) -> None:
        """Raise DeadlineExceeded if the deadline has passed, so that no further stage starts."""
        if self.remaining_s == 0.0:
            raise DeadlineExceeded("the deadline passed")

    @property
    def remaining_s(self) -> float | None:
        """Seconds left, >= 0; None without a deadline."""
        return None if self.at_s is None else max(0.0, self.at_s - time.monotonic())

    def timeout(self) -> asyncio.Timeout:
        """A block that raises TimeoutError when the deadline passes. Raises DeadlineExceeded if it has passed."""
        self.check()
        return asyncio.timeout(self.remaining_s)

    @property
    def is_due(self) -> bool:
        """Whether it has passed, or passes in a moment: a caller that disconnects now does so because of it."""
        return self.at_s is not None and self.at_s - time.monotonic() <= _SAME_MOMENT_S


NO_DEADLINE = Deadline()
