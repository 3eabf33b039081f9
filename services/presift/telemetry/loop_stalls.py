"""Measures how long the event loop stood still: all calls of a service wait while one callback runs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from presift.telemetry.gauges import gauge, observed

_SLEEP_S = 0.01
# Longer than the time between two scrapes, so that none misses a stall.
_WINDOW_S = 60.0


class LoopStalls:
    """The longest stall within the last minute. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # (when it ended, seconds): each stall is longer than all later ones, so the first is the longest.
        self._stalls: deque[tuple[float, float]] = deque()

    async def measure(self) -> None:
        """Sleep again and again, and record by how much each sleep was too long. Never returns."""
        while True:
            began_s = self._clock()
            await asyncio.sleep(_SLEEP_S)
            self.add(self._clock() - began_s - _SLEEP_S)

    def add(self, stall_s: float) -> None:
        """Record a stall of `stall_s` seconds that ends now."""
        while self._stalls and self._stalls[-1][1] <= stall_s:
            self._stalls.pop()
        self._stalls.append((self._clock(), stall_s))
        self._forget()

    def longest_s(self) -> float:
        """Seconds; 0 if nothing was recorded within the last minute."""
        self._forget()
        return self._stalls[0][1] if self._stalls else 0.0

    def _forget(self) -> None:
        while self._stalls and self._stalls[0][0] < self._clock() - _WINDOW_S:
            self._stalls.popleft()


@asynccontextmanager
async def observed_loop() -> AsyncIterator[None]:
    """Export the stalls of the running event loop while the block runs."""
    stalls = LoopStalls()
    measuring = asyncio.create_task(stalls.measure(), name="measure stalls of the event loop")
    try:
        with observed(gauge("presift.loop.stall", stalls.longest_s)):
            yield
    finally:
        measuring.cancel()
