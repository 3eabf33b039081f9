"""Work in the background: in the calm alone, one piece at a time, and nothing of it is left."""

import asyncio
import contextvars

import pytest

from presift.core.errors import TargetUnavailable
from presift.orchestrator.quality.shadow_queue import IdleGate, ShadowOutcome, ShadowQueue


class Bench:
    """Pieces are coroutine functions; `heard` holds what became of them."""

    def __init__(self, timeout_s=60.0):
        self.heard, self.began, self.ended = [], 0, 0
        self.calm = IdleGate()
        self.shadows = ShadowQueue(self.calm, self.work, lambda piece, outcome: self.heard.append(outcome), timeout_s)

    async def work(self, piece):
        self.began += 1
        try:
            await piece()
        finally:
            self.ended += 1

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    await bench.shadows.aclose()


async def nothing():
    pass


async def for_ever():
    await asyncio.Event().wait()


async def test_a_piece_is_done_in_the_calm(bench):
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.heard == [ShadowOutcome.DONE])


async def test_nothing_begins_while_a_caller_waits(bench):
    with bench.calm.stirred(), bench.calm.stirred() as calmed:
        bench.shadows.offer(nothing)
        calmed()
        await asyncio.sleep(0.02)
        assert bench.began == 0  # the other one still waits
    await bench.until(lambda: bench.heard == [ShadowOutcome.DONE])


async def test_a_caller_ends_what_is_under_way_and_it_is_tried_once_more(bench):
    bench.shadows.offer(for_ever)
    for attempt in (1, 2):
        await bench.until(lambda attempt=attempt: bench.began == attempt)
        with bench.calm.stirred():
            await bench.until(lambda attempt=attempt: bench.ended == attempt)
    await bench.until(lambda: bench.heard == [ShadowOutcome.INTERRUPTED])
    assert bench.began == 2
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.heard == [ShadowOutcome.INTERRUPTED, ShadowOutcome.DONE])


async def test_even_one_who_is_gone_before_it_is_seen(bench):
    bench.shadows.offer(for_ever)
    await bench.until(lambda: bench.began == 1)
    with bench.calm.stirred():
        pass
    await bench.until(lambda: bench.began == 2)


async def test_one_at_a_time_and_no_more_waiting_than_there_is_room(bench):
    running, most = 0, 0

    async def counted():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    with bench.calm.stirred():
        for _ in range(20):
            bench.shadows.offer(counted)
        dropped = bench.heard.count(ShadowOutcome.DROPPED)
        assert 0 < dropped < 20 and bench.began == 0
    await bench.until(lambda: len(bench.heard) == 20)
    assert most == 1 and bench.heard.count(ShadowOutcome.DONE) == 20 - dropped


@pytest.mark.parametrize("error", [TargetUnavailable("away"), RuntimeError("secret"), asyncio.CancelledError()])
async def test_what_fails_is_counted_and_the_next_is_done(bench, error, caplog):
    async def fails():
        raise error

    bench.shadows.offer(fails)
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.heard == [ShadowOutcome.FAILED, ShadowOutcome.DONE])
    assert "secret" not in caplog.text


async def test_what_takes_too_long_is_ended():
    bench = Bench(timeout_s=0.01)
    bench.shadows.offer(for_ever)
    await bench.until(lambda: bench.heard == [ShadowOutcome.FAILED])
    assert bench.ended == 1
    await bench.shadows.aclose()


async def test_a_stop_leaves_no_task(bench):
    before = asyncio.all_tasks()
    bench.shadows.offer(for_ever)
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.began == 1)
    await bench.shadows.aclose()
    assert asyncio.all_tasks() == before and bench.ended == 1


async def test_it_has_no_part_in_the_trace_of_who_offered_it(bench):
    trace, seen = contextvars.ContextVar("trace", default="none"), []

    async def looks():
        seen.append(trace.get())

    trace.set("a caller's")
    bench.shadows.offer(looks)
    await bench.until(lambda: seen == ["none"])


async def test_a_stop_before_anything_was_offered(bench):
    await bench.shadows.aclose()
