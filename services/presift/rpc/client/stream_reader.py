"""Reading a stream in a task that nobody cancels: the call is cancelled instead, which ends it.

gRPC's aio client never frees the operations of a read whose awaiter is cancelled (grpc/grpc#43360, open as of 1.85):
some hundred bytes for each caller who leaves in the middle of an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from typing import TypeVar

T = TypeVar("T")

# The loop itself keeps no hold of its tasks.
_reading: set[asyncio.Task[None]] = set()


async def read_stream(call: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """What the call's stream says, read as fast as it comes. Raises what reading it raises, after all that came before.

    Whoever leaves early has to cancel the call.
    """
    events: asyncio.Queue[T | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for event in call:
                events.put_nowait(event)
        finally:
            events.put_nowait(None)

    reading = asyncio.create_task(read(), name="read a stream")
    _reading.add(reading)
    reading.add_done_callback(_ended)
    while (event := await events.get()) is not None:
        yield event
    await reading


def _ended(reading: asyncio.Task[None]) -> None:
    _reading.discard(reading)
    if not reading.cancelled():
        reading.exception()  # marks it as seen: whoever reads has it, or has left
