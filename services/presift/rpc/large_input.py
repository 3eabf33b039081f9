"""Work that grows with a request is done in another thread if the request is large: all calls of a service share one
event loop, and stand still while it works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import TypeVar

from presift.rpc.tasks import retrieve_error

# Bytes. Reading this much (thousands of chat parts) takes some 10 ms; starting a thread takes 0.2 ms.
LARGE_BYTES = 2**15

# The bytes of the current call's gRPC message; its `ByteSize` takes as long as encoding it again.
received_bytes: ContextVar[int] = ContextVar("received_bytes", default=0)

T = TypeVar("T")


async def in_thread_if_large(size: int, work: Callable[[], T]) -> T:
    """The result of `work` on `size` bytes; computed in another thread if they are at least LARGE_BYTES."""
    return work() if size < LARGE_BYTES else await in_thread(work)


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, computed in another thread. If the caller is cancelled, this still waits for the thread:
    its input stays in memory until then, and must stay counted."""
    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with suppress(asyncio.CancelledError):  # a caller may leave after its deadline has passed
                await asyncio.wait((working,))
        retrieve_error(working)
        raise
