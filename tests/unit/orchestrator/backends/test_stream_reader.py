"""Streams that are read ahead: all pieces in order for any consumer, and no task left behind."""

import asyncio
import gc
from contextlib import aclosing

import pytest

from presift.orchestrator.backends.stream_reader import MAX_PIECES, buffered, read_ahead


def together(pieces):
    """Lists joined to one."""
    return [[number for piece in pieces for number in piece]]


class Call:
    """A call of `count` pieces that then ends, raises `error`, or (`waits`) lasts until it is cancelled.

    A cancelled call raises `error` too, if it has one. It ends once `may_end` is set.
    """

    def __init__(self, count, error=None, waits=False):
        self.count, self.error, self.waits = count, error, waits
        self.read = self.closed = self.cancels = 0
        self.reader_was_cancelled = False
        self._cancelled, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_end.set()

    async def pieces(self):
        try:
            for number in range(self.count):
                await asyncio.sleep(0)
                if self._cancelled.is_set():
                    break
                self.read += 1
                yield [number]
            if self.waits:
                await self._cancelled.wait()
            await self.may_end.wait()
            if self.error:
                raise self.error
        except asyncio.CancelledError:
            self.reader_was_cancelled = True
            raise
        finally:
            self.closed += 1

    def cancel(self):
        self.cancels += 1
        self._cancelled.set()

    def read_ahead(self, join=None):
        return read_ahead(self.pieces(), self.cancel, join)

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition(self):
                await asyncio.sleep(0)


@pytest.mark.parametrize("join", [None, together])
async def test_a_consumer_that_keeps_up_gets_each_piece(join):
    call = Call(500)
    assert [piece async for piece in call.read_ahead(join)] == [[number] for number in range(500)]
    assert (call.closed, call.cancels) == (1, 0)


@pytest.mark.parametrize(("join", "most"), [(None, 5000), (together, 5000 // MAX_PIECES + MAX_PIECES)])
async def test_a_slow_consumer_gets_everything_in_few_pieces_if_they_can_be_joined(join, most):
    call, found = Call(5000), []
    async with aclosing(call.read_ahead(join)) as pieces:
        found.append(await anext(pieces))
        await call.until(lambda call: call.closed)
        assert call.read == 5000, "the call was read to its end"
        found += [piece async for piece in pieces]
    assert len(found) <= most and together(found) == [list(range(5000))]
    assert call.cancels == 0


async def test_a_piece_that_waits_is_joined_once():
    """Joined again with all that came before, 100,000 tokens of a stalled caller took a second of the event loop."""
    joined = []

    def join(pieces):
        joined.extend(pieces)
        return together(pieces)

    call = Call(5000)
    async with aclosing(call.read_ahead(join)) as pieces:
        await anext(pieces)
        await call.until(lambda call: call.closed)
        rest = [piece async for piece in pieces]
    assert all(len(piece) == 1 for piece in joined) and len(joined) <= 5000
    assert together(rest) == [list(range(1, 5000))]


@pytest.mark.parametrize("streams", [1, 16, 128])
async def test_pieces_of_several_streams_become_few_too(streams):
    """Each piece is (stream, numbers): a join makes one for each stream."""

    def join(pieces):
        found = {}
        for stream, numbers in pieces:
            found[stream] = found.get(stream, []) + numbers
        return list(found.items())

    async def write(put):
        for number in range(20_000):
            put((number % streams, [number]))

    found = [piece async for piece in buffered(write, lambda: None, join)]
    assert len(found) < 20_000 / 8
    for stream in range(streams):
        numbers = [number for each, numbers in found if each == stream for number in numbers]
        assert numbers == list(range(stream, 20_000, streams))


@pytest.mark.parametrize("join", [None, together])
async def test_an_error_comes_after_the_pieces_before_it(join):
    call, found = Call(3, RuntimeError("lost")), []
    with pytest.raises(RuntimeError, match="lost"):
        async for piece in call.read_ahead(join):
            found.append(piece)
    assert found == [[0], [1], [2]] and (call.closed, call.cancels) == (1, 0)


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_closing_early_cancels_the_call_and_leaves_no_task(taken):
    before, call = asyncio.all_tasks(), Call(10**9)
    async with aclosing(call.read_ahead(together)) as pieces:
        for _ in range(taken):
            await anext(pieces)
    assert (call.closed, call.cancels) == ((1, 1) if taken else (0, 0))
    assert not call.reader_was_cancelled and asyncio.all_tasks() == before


async def test_a_cancelled_consumer_cancels_the_call_and_not_its_reader():
    before, call = asyncio.all_tasks(), Call(1, waits=True)

    async def take():
        async with aclosing(call.read_ahead()) as pieces:
            async for _ in pieces:
                pass

    taking = asyncio.create_task(take())
    await call.until(lambda call: call.read)
    for _ in range(5):
        await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert (call.closed, call.cancels) == (1, 1)
    assert not call.reader_was_cancelled and asyncio.all_tasks() == before


async def test_a_consumer_cancelled_again_does_not_cancel_the_reader_of_a_slow_call(caplog):
    before, call = asyncio.all_tasks(), Call(1, RuntimeError("late"), waits=True)
    call.may_end.clear()

    async def take():
        async with aclosing(call.read_ahead()) as pieces:
            async for _ in pieces:
                pass

    taking = asyncio.create_task(take())
    await call.until(lambda call: call.read)
    for _ in range(5):
        await asyncio.sleep(0)
    taking.cancel()
    await call.until(lambda call: call.cancels)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not call.closed and not call.reader_was_cancelled
    call.may_end.set()
    await call.until(lambda call: call.closed and asyncio.all_tasks() == before)
    gc.collect()
    await asyncio.sleep(0)
    assert not call.reader_was_cancelled and not caplog.records


@pytest.mark.parametrize("waits", [False, True], ids=["before the close", "by the cancelled call"])
async def test_an_error_after_the_consumer_stopped_is_not_logged(waits, caplog):
    call = Call(2, RuntimeError("late"), waits)
    async with aclosing(call.read_ahead()) as pieces:
        await anext(pieces)
        await call.until(lambda call: call.closed or (waits and call.read == 2))
    gc.collect()
    await asyncio.sleep(0)
    assert call.closed == 1 and not caplog.records
