"""Reads a stream ahead of its consumer, in a task of its own that is never cancelled: the call is cancelled instead.

Reading ahead: a write to a caller who does not read blocks once gRPC's window is full. Without a buffer the stream
behind it would block too, and hold its place at the other service.

Never cancelled: gRPC's aio client does not free the operations of a read whose awaiter is cancelled (grpc/grpc#43360,
open as of 1.85), some hundred bytes for each caller who disconnects in the middle of an answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

from presift.core.errors import Overloaded
from presift.orchestrator.admission.answer_bytes import AnswerPart, Drop, WaitingAnswer
from presift.rpc.tasks import retrieve_error

T = TypeVar("T")
# Pieces -> the same content in fewer pieces.
Join = Callable[[Sequence[T]], Iterable[T]]
# Gives every piece to the function that it is called with.
Write = Callable[[Callable[[T], None]], Awaitable[None]]

# Above this number waiting pieces are joined, so that they take little more memory than their content.
MAX_PIECES = 64


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """Counts what waits: `open` as `AnswerBytes.part` does, by the bytes that `measure` gives for a piece. Joined
    pieces must have the bytes of all of them."""

    open: Callable[[Drop], AbstractContextManager[WaitingAnswer | AnswerPart]]
    measure: Callable[[T], int]


class _Buffer(Generic[T]):
    def __init__(self, join: Join[T] | None, measure: Callable[[T], int]) -> None:
        self._join = join
        self._measure = measure
        self._error: Overloaded | None = None
        # The bytes of the piece that the consumer works on.
        self._taken = 0
        self.answer: WaitingAnswer | AnswerPart | None = None
        self._pieces: deque[T] = deque()
        self._ready = asyncio.Event()
        self._has_ended = False
        # The last pieces that are not joined yet. Joined ones are not joined again: the cost is linear.
        self._fresh, self._most = 0, MAX_PIECES

    def put(self, piece: T) -> None:
        if self._error is not None:
            return
        self._pieces.append(piece)
        self._fresh += 1
        if self._join is not None and self._fresh > self._most:
            fresh = [self._pieces.pop() for _ in range(self._fresh)]
            joined = list(self._join(fresh[::-1]))
            self._pieces.extend(joined)
            self._fresh, self._most = 0, max(MAX_PIECES, 16 * len(joined))  # several streams cannot become one piece
        self._ready.set()
        if self.answer is not None:
            self.answer.add(self._measure(piece))

    def end(self) -> None:
        self._has_ended = True
        self._ready.set()

    def fail(self, error: Overloaded) -> None:
        """Forget what waits; the consumer gets `error`."""
        self._error = error
        self._pieces.clear()
        self._fresh = 0
        self.end()

    async def take(self) -> T | None:
        """The next piece; None after the last one. Raises what it failed with."""
        self._release_taken()
        while not self._pieces and not self._has_ended:
            self._ready.clear()
            await self._ready.wait()
        if self._error is not None:
            raise self._error
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        self._fresh = min(self._fresh, len(self._pieces))
        if self.answer is not None:
            self._taken = self._measure(piece)
        return piece

    def _release_taken(self) -> None:
        """The consumer asks for more, so it has written the last piece."""
        if self.answer is not None and self._taken:
            self.answer.add(-self._taken)
            self._taken = 0


def read_ahead(
    pieces: AsyncGenerator[T, None], cancel: Callable[[], None], join: Join[T] | None = None
) -> AsyncGenerator[T, None]:
    """The same pieces in order; see `buffered`, which this is for one stream."""

    async def write(put: Callable[[T], None]) -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                put(piece)

    return buffered(write, cancel, join)


async def buffered(
    write: Write[T], cancel: Callable[[], None], join: Join[T] | None = None, held: Held[T] | None = None
) -> AsyncGenerator[T, None]:
    """What `write` puts, in order. Raises its error, after the pieces that came before.

    `cancel` must end `write` soon; it is called when the consumer closes the generator early. `join` makes fewer
    pieces when many wait. `held` counts them; raises Overloaded if it drops them.
    """
    buffer = _Buffer(join, (lambda _: 0) if held is None else held.measure)

    def drop(error: Overloaded) -> None:
        buffer.fail(error)
        cancel()

    async def run() -> None:
        try:
            await write(buffer.put)
        finally:
            buffer.end()

    reading = asyncio.create_task(run(), name="read ahead")
    reading.add_done_callback(retrieve_error)
    try:
        with nullcontext() if held is None else held.open(drop) as buffer.answer:
            while (piece := await buffer.take()) is not None:
                yield piece
        await asyncio.shield(reading)
    finally:
        if not reading.done():
            cancel()
            await asyncio.wait((reading,))
