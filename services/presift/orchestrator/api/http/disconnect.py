"""Cancels a request's work when its client disconnects, as gRPC cancels a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.types import Receive


class Client:
    """The client of the current task. `has_disconnected`: the task was cancelled for that reason."""

    def __init__(self, receive: Receive, is_ending: Callable[[], bool]) -> None:
        """A server reports a disconnect also after a complete response: it is ignored once the response `is_ending`."""
        self.has_disconnected = False
        self._receive = receive
        self._is_ending = is_ending

    @asynccontextmanager
    async def cancels_on_disconnect(self) -> AsyncIterator[None]:
        """Cancel the block when the client disconnects. To be entered after the body was read."""
        watching = asyncio.create_task(self._watch(asyncio.current_task()), name="watch a client")
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self, task: asyncio.Task[object] | None) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if task is not None and not self._is_ending():
            self.has_disconnected = True
            task.cancel()
