"""Runs one computation per key in this process, however many callers want it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from presift.core.errors import InternalError
from presift.rpc.tasks import retrieve_error

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class SingleFlight(Generic[T]):
    """Shares running computations. It keeps no results, and no failures.

    A computation runs in a task of its own, in the first caller's context: that caller's trace span is the parent. It
    continues if that caller is cancelled, and is cancelled when no caller waits any more. So `factory` needs its own
    time limit, not the first caller's deadline.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    def __len__(self) -> int:
        """The number of running computations."""
        return len(self._flights)

    def is_under_way(self, key: str) -> bool:
        """Whether `run` would join another caller's computation."""
        return key in self._flights

    async def run(self, key: str, factory: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result, and whether another caller had started it. Raises what `factory` raises, in every caller."""
        flight = self._flights.get(key)
        is_shared = flight is not None
        if flight is None:
            flight = self._start(key, factory)
        flight.waiters += 1
        try:
            await asyncio.wait((flight.task,))
        finally:
            self._detach(key, flight)
        if flight.task.cancelled():  # not by this class: for the callers it is a failure, not a cancellation
            raise InternalError("a shared computation was cancelled from outside")
        return flight.task.result(), is_shared

    def _start(self, key: str, factory: Callable[[], Awaitable[T]]) -> _Flight[T]:
        async def compute() -> T:
            return await factory()

        flight = self._flights[key] = _Flight(asyncio.create_task(compute(), name=f"single-flight {key[:8]}"))
        flight.task.add_done_callback(lambda task: self._finish(key, flight, task))
        return flight

    def _detach(self, key: str, flight: _Flight[T]) -> None:
        flight.waiters -= 1
        if flight.waiters == 0 and not flight.task.done():
            self._forget(key, flight)  # at once: a new caller must not join a computation that is being cancelled
            flight.task.cancel()

    def _finish(self, key: str, flight: _Flight[T], task: asyncio.Task[T]) -> None:
        self._forget(key, flight)
        retrieve_error(task)

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
