"""Several answers to one plan, read side by side into one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass

from presift.orchestrator.backends.stream_reader import Held, buffered
from presift.orchestrator.pipeline.events import Delta, Report, joined

Put = Callable[[Delta | Report], None]

# At most so many answers of a request run at once, beside the first. A target's queue takes 64 by default, and refuses
# more.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class AnswerStream:
    """One answer: its events, which begin when they are read, and what aborts it."""

    events: AsyncGenerator[Delta | Report, None]
    cancel: Callable[[], None]


def side_by_side(
    answers: Sequence[AnswerStream],
    until_last: AbstractContextManager[object],
    held: Held[Delta | Report] | None = None,
) -> AsyncGenerator[Delta | Report, None]:
    """The events of all answers, read as fast as the target produces them, however slowly the caller reads.

    The first answer starts alone: at its first token the target has the prompt in its cache for the others. An error
    of one answer ends all. `until_last` is left with the last answer. `held` counts what the caller has not read.
    """

    def cancel() -> None:
        for answer in answers:
            answer.cancel()

    async def write(put: Put) -> None:
        with until_last:
            if len(answers) == 1:
                await _read(answers[0], put)
            else:
                await _read_all(answers, put, cancel)

    return buffered(write, cancel, joined, held)


async def _read(answer: AnswerStream, put: Put) -> None:
    async with aclosing(answer.events) as events:
        async for event in events:
            put(event)


async def _read_limited(answer: AnswerStream, put: Put, slots: asyncio.Semaphore) -> None:
    async with slots:
        await _read(answer, put)


async def _read_all(answers: Sequence[AnswerStream], put: Put, cancel: Callable[[], None]) -> None:
    """Each in a task that is never cancelled (see `stream_reader`): `cancel` ends them."""
    has_begun = asyncio.Event()

    def put_first(event: Delta | Report) -> None:
        has_begun.set()
        put(event)

    first = asyncio.create_task(_read(answers[0], put_first), name="answer")
    first.add_done_callback(lambda _: has_begun.set())
    await has_begun.wait()
    tasks = [first]
    if not _has_failed(first):
        slots = asyncio.Semaphore(_AT_ONCE)
        tasks += [asyncio.create_task(_read_limited(answer, put, slots), name="answer") for answer in answers[1:]]
    ended, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    if others:
        cancel()
        await asyncio.wait(others)
    for task in sorted((*ended, *others), key=asyncio.Task.cancelled):  # an error before what it cancelled
        task.result()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
