"""A rest for a server that fails: without it every request would wait out the timeout of a dead cache.

Not a library: those looked at (purgatory 3.0, aiobreaker 1.2) let every waiting call through once half open, read the
wall clock, and are 300 to 700 lines around the three methods below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class CircuitBreaker:
    """After `failures` in a row nothing is allowed for `rest_s` seconds, then one attempt per rest until one works."""

    def __init__(self, failures: int, rest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._rest_s = rest_s
        self._clock = clock
        self._failures = 0
        self._rests_until_s = -math.inf
        self._succeeded_s = -math.inf

    @property
    def is_resting(self) -> bool:
        return self._failures >= self._limit

    def begin(self) -> float | None:
        """When an attempt may begin: now, or None. While resting, one per rest: its caller is the probe."""
        now_s = self._clock()
        if self.is_resting:
            if now_s < self._rests_until_s:
                return None
            self._rests_until_s = now_s + self._rest_s
        return now_s

    def succeeded(self) -> None:
        self._failures = 0
        self._succeeded_s = self._clock()

    def failed(self, began_s: float) -> None:
        """Count the failure of the attempt that began at `began_s`, unless another has succeeded since: then the server
        is well, and this one only waited too long for its turn in a burst.
        """
        if began_s > self._succeeded_s:
            self._failures += 1
            self._rests_until_s = self._clock() + self._rest_s
