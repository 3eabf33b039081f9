"""The circuit breaker of a replica or a cache server: stops calls to a peer that fails, then probes it.

For replicas, `rpc/pool/pool.py` has the numbers and `rpc/pool/replica.py` says which calls count as failures. For the
cache it is `cache/store.py` and `cache/redis_client.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import StrEnum


class BreakerState(StrEnum):
    """Closed lets calls through, open refuses them, half open lets one through at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


def _ignore(state: BreakerState) -> None:
    return None


class CircuitBreaker:
    """Opens for `open_s` seconds after `failures` in a row, then stays half open until a call succeeds or fails.

    Callers report outcomes after the call, and may leave out those that say nothing about the peer. `on_change` is
    called with each new state; half open is reported at the first probe or outcome. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        failures: int,
        open_s: float,
        on_change: Callable[[BreakerState], None] = _ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._open_s = open_s
        self._on_change = on_change
        self._clock = clock
        self._failures = 0
        self._open_until_s = self._probe_until_s = self._succeeded_s = -math.inf
        self._reported = BreakerState.CLOSED

    @property
    def state(self) -> BreakerState:
        if self._failures < self._limit:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._clock() < self._open_until_s else BreakerState.HALF_OPEN

    def begin(self) -> float | None:
        """The time at which an attempt may begin (now), or None if it must not.

        While half open the first caller gets the probe. A probe without an outcome blocks others for `open_s` only.
        """
        now_s, state = self._clock(), self.state
        if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and now_s < self._probe_until_s):
            return None
        if state is BreakerState.HALF_OPEN:
            self._probe_until_s = now_s + self._open_s
        self._report(state)
        return now_s

    def record_success(self) -> None:
        """The peer answered, even if it refused. Closes a half-open breaker; an open one waits for its probe."""
        state, self._succeeded_s = self.state, self._clock()
        if state is not BreakerState.OPEN:
            self._report(state)
            self._failures = 0
            self._report(BreakerState.CLOSED)

    def record_failure(self, began_s: float) -> None:
        """Count the failure of the attempt that began at `began_s`, unless another one has succeeded since then.

        In that case the peer works, and the attempt only waited too long in a burst.
        """
        state = self.state
        if began_s < self._succeeded_s or state is BreakerState.OPEN:
            return
        self._report(state)
        self._failures += 1
        if self._failures >= self._limit:
            self._open_until_s = self._clock() + self._open_s
            self._probe_until_s = -math.inf
            self._report(BreakerState.OPEN)

    def _report(self, state: BreakerState) -> None:
        if state is not self._reported:
            self._reported = state
            self._on_change(state)
