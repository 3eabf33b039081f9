"""Several requests of one call: carried out side by side, their events merged into one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing

from presift.orchestrator.domain.request import Request
from presift.orchestrator.pipeline.events import Event

# Requests of one call that run at once: a large batch must not take the places of other callers.
MOST_AT_ONCE = 8
# Events that wait for the caller; a request whose events are not taken is read ahead by its pipeline.
_BUFFERED = 64

# The events of one request.
Generate = Callable[[Request], AsyncGenerator[Event, None]]
# A request's number, and its event.
NumberedEvent = tuple[int, Event]


async def answer_all(generate: Generate, requests: Sequence[Request]) -> AsyncGenerator[NumberedEvent, None]:
    """The events of all requests. The first error ends all of them, and so does closing the generator."""
    if len(requests) == 1:
        async with aclosing(generate(requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    merged: asyncio.Queue[NumberedEvent | BaseException | None] = asyncio.Queue(_BUFFERED)
    waiting = iter(enumerate(requests))
    tasks = [
        asyncio.create_task(_forward(generate, waiting, merged), name="some of a batch")
        for _ in range(_most_at_once(requests))
    ]
    try:
        running = len(tasks)
        while running:
            piece = await merged.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
            else:
                yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _most_at_once(requests: Sequence[Request]) -> int:
    """Not more than the tenant may have: the call would refuse itself."""
    allowed = requests[0].limits.concurrency
    return MOST_AT_ONCE if allowed is None else min(MOST_AT_ONCE, allowed)


async def _forward(
    generate: Generate,
    waiting: Iterator[tuple[int, Request]],
    merged: asyncio.Queue[NumberedEvent | BaseException | None],
) -> None:
    """Carry out the requests that wait, one after the other, until there is none. `waiting` is shared."""
    try:
        for number, request in waiting:
            async with aclosing(generate(request)) as events:
                async for event in events:
                    await merged.put((number, event))
    except Exception as error:
        await merged.put(error)
        return
    await merged.put(None)
