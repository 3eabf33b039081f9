"""Streams that are read apart from who waits for them."""

import asyncio
from contextlib import aclosing

import pytest

from presift.rpc.client.stream_reader import read_stream


class Call:
    """A stream that tells `count` events and then waits to be cancelled; whether its reader was cancelled instead."""

    def __init__(self, count, ends=False, fault=None):
        self.count, self.ends, self.fault = count, ends, fault
        self.gone = asyncio.Event()
        self.reader_was_cancelled = self.has_ended = False

    async def __aiter__(self):
        try:
            for number in range(self.count):
                yield number
            if not self.ends and self.fault is None:
                await self.gone.wait()
            if self.fault is not None:
                raise self.fault
        except asyncio.CancelledError:
            self.reader_was_cancelled = True
            raise
        finally:
            self.has_ended = True


async def ended(call):
    for _ in range(100):
        if call.has_ended:
            return True
        await asyncio.sleep(0)
    return False


async def test_everything_in_order():
    assert [event async for event in read_stream(Call(200, ends=True))] == list(range(200))


async def test_what_came_before_an_error_comes_first():
    events, seen = read_stream(Call(3, fault=RuntimeError("lost"))), []
    with pytest.raises(RuntimeError, match="lost"):
        async for event in events:
            seen.append(event)
    assert seen == [0, 1, 2]


async def test_who_is_cancelled_while_it_waits_does_not_cancel_the_reading():
    call = Call(1)
    events = read_stream(call)
    assert await anext(events) == 0
    waiting = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not call.has_ended
    call.gone.set()  # as a cancelled call ends
    assert await ended(call) and not call.reader_was_cancelled


async def test_who_leaves_early_leaves_the_end_to_the_call():
    call = Call(5)
    async with aclosing(read_stream(call)) as events:
        assert await anext(events) == 0
    assert not call.has_ended
    call.gone.set()
    assert await ended(call) and not call.reader_was_cancelled


async def test_an_error_that_nobody_waits_for_is_no_noise(caplog):
    call = Call(1)
    async with aclosing(read_stream(call)) as events:
        await anext(events)
    call.fault = RuntimeError("late")
    call.gone.set()
    assert await ended(call)
    assert caplog.records == []
