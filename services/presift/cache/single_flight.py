"""N simultaneous askers of one key, one computation in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from presift.core.errors import InternalError

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class SingleFlight(Generic[T]):
    """Shares computations that are under way; remembers nothing of those that are done, failed ones included.

    A computation belongs to all who wait for it: it runs in its own task (in the first asker's context: its trace span
    is the parent), goes on if that asker is cancelled, and is cancelled once nobody waits. So `factory` must bring its
    own time limit, not the first asker's deadline.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    def __len__(self) -> int:
        """How many computations are under way."""
        return len(self._flights)

    def is_under_way(self, key: str) -> bool:
        """Whether `run` would join another asker's computation."""
        return key in self._flights

    async def run(self, key: str, factory: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result, and whether another asker had started it. Raises what `factory` raises, in every asker."""
        flight = self._flights.get(key)
        is_shared = flight is not None
        if flight is None:
            flight = self._start(key, factory)
        flight.waiters += 1
        try:
            await asyncio.wait((flight.task,))
        finally:
            self._leave(key, flight)
        if flight.task.cancelled():  # by something else than us: to the askers it is a failure, not their cancellation
            raise InternalError("a shared computation was cancelled from outside")
        return flight.task.result(), is_shared

    def _start(self, key: str, factory: Callable[[], Awaitable[T]]) -> _Flight[T]:
        async def compute() -> T:
            return await factory()

        flight = self._flights[key] = _Flight(asyncio.create_task(compute(), name=f"single-flight {key[:8]}"))
        flight.task.add_done_callback(lambda task: self._land(key, flight, task))
        return flight

    def _leave(self, key: str, flight: _Flight[T]) -> None:
        flight.waiters -= 1
        if flight.waiters == 0 and not flight.task.done():
            self._forget(key, flight)  # at once: a newcomer must not join what is being cancelled
            flight.task.cancel()

    def _land(self, key: str, flight: _Flight[T], task: asyncio.Task[T]) -> None:
        self._forget(key, flight)
        if not task.cancelled():
            task.exception()  # marks it as seen, in case everybody has left

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
