"""The circuit breaker of a replica: open when call after call has failed; some seconds later a probe goes through."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any

from purgatory import SyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

FAILURES, OPEN_S = 5, 5.0


class BreakerState(StrEnum):
    """Closed lets calls through, open does not, half open one at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class _Failed(Exception):
    """What the library counts."""


class CircuitBreaker:
    """Told of outcomes after the fact: a caller who leaves says nothing of the replica. `moved` hears of its moves."""

    def __init__(
        self, name: str, moved: Callable[[BreakerState], None], failures: int = FAILURES, open_s: float = OPEN_S
    ) -> None:
        factory = SyncCircuitBreakerFactory(default_threshold=failures, default_ttl=open_s)
        factory.add_listener(self._hear)
        self._breaker = factory.get_breaker(name)
        self._moved = moved

    @property
    def state(self) -> BreakerState:
        held = self._breaker.context
        if held.state == "opened" and time.time() <= (held.opened_at or 0.0) + held.ttl:
            return BreakerState.OPEN
        return BreakerState.CLOSED if held.state == "closed" else BreakerState.HALF_OPEN

    def answered(self) -> None:
        """A call was answered, be it with a refusal."""
        with suppress(OpenedState), self._breaker:
            pass

    def failed(self) -> None:
        """A call met nobody, or nobody in time."""
        with suppress(_Failed, OpenedState), self._breaker:
            raise _Failed

    def _hear(self, name: str, kind: str, event: Any) -> None:
        if kind == "state_changed":
            state = str(event.state)
            self._moved({"opened": BreakerState.OPEN, "closed": BreakerState.CLOSED}.get(state, BreakerState.HALF_OPEN))
