"""Callers who leave: whatever is done for one ends when its connection does, as a cancelled gRPC call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.types import Receive


class CallerLeft(Exception):
    """Nobody is there to be answered."""


class Presence:
    """Whether the caller of the current task is still there. `has_left`: its task was cancelled for that."""

    def __init__(self, receive: Receive, is_ending: Callable[[], bool]) -> None:
        """A server says the same of a connection whose answer `is_ending`, or has: nobody left then."""
        self.has_left = False
        self._receive = receive
        self._is_ending = is_ending

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """The block is cancelled when the caller leaves. To be entered once the body was read."""
        watching = asyncio.create_task(self._watch(asyncio.current_task()), name="watch a caller")
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self, task: asyncio.Task[object] | None) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if task is not None and not self._is_ending():
            self.has_left = True
            task.cancel()
