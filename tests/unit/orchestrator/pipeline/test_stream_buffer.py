"""Answers that are read ahead: the same pieces in order, however slowly they are taken, and no task left behind."""

import asyncio
from contextlib import aclosing

import pytest

from presift.orchestrator.pipeline.pipeline import Delta, joined
from presift.orchestrator.pipeline.stream_buffer import MAX_PIECES, buffered


def together(pieces):
    """Lists joined to one."""
    return [[each for piece in pieces for each in piece]]


class Source:
    def __init__(self, count, error=None):
        self.count, self.error, self.closed, self.read = count, error, 0, 0

    async def pieces(self):
        try:
            for number in range(self.count):
                await asyncio.sleep(0)
                self.read += 1
                yield [number]
            if self.error:
                raise self.error
        finally:
            self.closed += 1


async def test_a_caller_who_keeps_up_gets_piece_by_piece():
    source = Source(500)
    found = [piece async for piece in buffered(source.pieces(), together)]
    assert found == [[number] for number in range(500)] and source.closed == 1


async def test_a_caller_who_reads_slowly_gets_it_all_in_few_pieces():
    source, found = Source(5000), []
    async with aclosing(buffered(source.pieces(), together)) as pieces:
        found.append(await anext(pieces))
        async with asyncio.timeout(20):
            while not source.closed:
                await asyncio.sleep(0)
        assert source.read == 5000, "the source was read to its end"
        found += [piece async for piece in pieces]
    assert len(found) <= MAX_PIECES + 2
    assert [number for piece in found for number in piece] == list(range(5000))


async def test_an_error_comes_after_what_came_before():
    source, found = Source(3, RuntimeError("gone")), []
    with pytest.raises(RuntimeError, match="gone"):
        async for piece in buffered(source.pieces(), together):
            found.append(piece)
    assert found == [[0], [1], [2]] and source.closed == 1


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_closing_closes_the_source(taken):
    before, source = asyncio.all_tasks(), Source(10**9)
    async with aclosing(buffered(source.pieces(), together)) as pieces:
        for _ in range(taken):
            await anext(pieces)
    assert source.closed == (taken > 0)
    assert asyncio.all_tasks() == before


async def test_a_cancelled_caller_closes_the_source():
    before, source = asyncio.all_tasks(), Source(1)

    async def never():
        async with aclosing(source.pieces()) as pieces:
            async for piece in pieces:
                yield piece
            await asyncio.Event().wait()

    async def take():
        async with aclosing(buffered(never(), together)) as pieces:
            async for _ in pieces:
                pass

    taking = asyncio.create_task(take())
    while not source.read:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert source.closed == 1 and asyncio.all_tasks() == before


async def test_an_error_that_nobody_waits_for_is_not_reported(caplog):
    source = Source(2, RuntimeError("gone"))
    async with aclosing(buffered(source.pieces(), together)) as pieces:
        await anext(pieces)
        while not source.closed:
            await asyncio.sleep(0)
    assert not caplog.records


def test_deltas_are_joined():
    deltas = [Delta("a", (1,)), Delta("", (2, 3)), Delta("bc", ())]
    assert list(joined(deltas)) == [Delta("abc", (1, 2, 3))]
    assert list(joined([])) == []
