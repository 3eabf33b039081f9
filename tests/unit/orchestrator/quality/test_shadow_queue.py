"""Background work: only while idle, one item at a time, and without leftovers."""

import asyncio
import contextvars

import pytest

from presift.core.errors import TargetUnavailable
from presift.orchestrator.quality.shadow_queue import IdleGate, ShadowOutcome, ShadowQueue


class Bench:
    """Items are coroutine functions; `outcomes` collects their results."""

    def __init__(self, timeout_s=60.0):
        self.outcomes, self.began, self.ended = [], 0, 0
        self.idle_gate = IdleGate()
        self.shadows = ShadowQueue(self.idle_gate, self.work, self.on_outcome, timeout_s)

    def on_outcome(self, item, outcome):
        self.outcomes.append(outcome)

    async def work(self, item):
        self.began += 1
        try:
            await item()
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


async def forever():
    await asyncio.Event().wait()


async def test_an_item_is_processed_while_idle(bench):
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.DONE])


async def test_nothing_starts_while_a_caller_waits(bench):
    with bench.idle_gate.busy(), bench.idle_gate.busy() as first_token:
        bench.shadows.offer(nothing)
        first_token()
        await asyncio.sleep(0.02)
        assert bench.began == 0  # the other caller still waits
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.DONE])


async def test_a_request_interrupts_the_item_which_is_retried_once(bench):
    bench.shadows.offer(forever)
    for attempt in (1, 2):
        await bench.until(lambda attempt=attempt: bench.began == attempt)
        with bench.idle_gate.busy():
            await bench.until(lambda attempt=attempt: bench.ended == attempt)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.INTERRUPTED])
    assert bench.began == 2
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.INTERRUPTED, ShadowOutcome.DONE])


async def test_even_a_very_short_request_interrupts(bench):
    bench.shadows.offer(forever)
    await bench.until(lambda: bench.began == 1)
    with bench.idle_gate.busy():
        pass
    await bench.until(lambda: bench.began == 2)


async def test_one_item_at_a_time_and_a_full_queue_drops(bench):
    running, most = 0, 0

    async def counted():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    with bench.idle_gate.busy():
        for _ in range(20):
            bench.shadows.offer(counted)
        dropped = bench.outcomes.count(ShadowOutcome.DROPPED)
        assert 0 < dropped < 20 and bench.began == 0
    await bench.until(lambda: len(bench.outcomes) == 20)
    assert most == 1 and bench.outcomes.count(ShadowOutcome.DONE) == 20 - dropped


@pytest.mark.parametrize("error", [TargetUnavailable("away"), RuntimeError("secret"), asyncio.CancelledError()])
async def test_a_failure_is_counted_and_the_next_item_is_processed(bench, error, caplog):
    async def fails():
        raise error

    bench.shadows.offer(fails)
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.FAILED, ShadowOutcome.DONE])
    assert "secret" not in caplog.text


async def test_an_item_that_takes_too_long_is_cancelled():
    bench = Bench(timeout_s=0.01)
    bench.shadows.offer(forever)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.FAILED])
    assert bench.ended == 1
    await bench.shadows.aclose()


async def test_aclose_leaves_no_task(bench):
    before = asyncio.all_tasks()
    bench.shadows.offer(forever)
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.began == 1)
    await bench.shadows.aclose()
    assert asyncio.all_tasks() == before and bench.ended == 1


async def test_the_worker_is_not_part_of_the_first_requests_trace(bench):
    trace, seen = contextvars.ContextVar("trace", default="none"), []

    async def reads_trace():
        seen.append(trace.get())

    trace.set("a caller's")
    bench.shadows.offer(reads_trace)
    await bench.until(lambda: seen == ["none"])


async def test_aclose_before_the_first_offer(bench):
    await bench.shadows.aclose()
