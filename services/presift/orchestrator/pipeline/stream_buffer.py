"""Delivery: an answer is read from the target as fast as it comes, however slowly its caller reads.

A write to a caller who does not read waits: gRPC buffers a window's worth of the stream, no more. Behind it the
target's stream would stand still too, and hold its place there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

# Above it, pieces are joined: what waits is then no longer than the answer's own tokens and text.
MAX_PIECES = 64


T = TypeVar("T")
# Pieces -> the same, in fewer.
Join = Callable[[Sequence[T]], Iterable[T]]


class _Buffer(Generic[T]):
    def __init__(self, join: Join[T]) -> None:
        self._join = join
        self._pieces: deque[T] = deque()
        self._ready = asyncio.Event()
        self._has_ended = False

    def put(self, piece: T) -> None:
        self._pieces.append(piece)
        if len(self._pieces) > MAX_PIECES:
            self._pieces = deque(self._join(self._pieces))
        self._ready.set()

    def end(self) -> None:
        self._has_ended = True
        self._ready.set()

    async def take(self) -> T | None:
        """The next piece; None after the last one."""
        while not self._pieces and not self._has_ended:
            self._ready.clear()
            await self._ready.wait()
        return self._pieces.popleft() if self._pieces else None


async def buffered(pieces: AsyncGenerator[T, None], join: Join[T]) -> AsyncGenerator[T, None]:
    """The same pieces, in order, read ahead in a task of its own; closing it closes them. Raises what they raise, after
    those that came before. `join` makes fewer of them where many wait.
    """
    buffer = _Buffer(join)

    async def read() -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    buffer.put(piece)
        finally:
            buffer.end()

    reading = asyncio.create_task(read(), name="read an answer")
    try:
        while (piece := await buffer.take()) is not None:
            yield piece
        await reading
    finally:
        reading.cancel()
        await asyncio.wait((reading,))
        if not reading.cancelled():
            reading.exception()  # marks it as seen, in case nobody takes the rest
