"""Shadow requests: only while the gate is idle, one at a time, and they leave no task behind."""

import asyncio
import contextvars

import pytest

from presift.core.errors import TargetUnavailable
from presift.orchestrator.quality.shadow_queue import IdleGate, ShadowOutcome, ShadowQueue


class Bench:
    """Pieces are coroutine functions; `outcomes` holds their outcomes."""

    def __init__(self, timeout_s=60.0):
        self.outcomes, self.began, self.ended = [], 0, 0
        self.gate = IdleGate()
        self.shadows = ShadowQueue(
            self.gate, self.work, lambda piece, outcome: self.outcomes.append(outcome), timeout_s
        )

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


async def test_a_piece_is_done_while_the_gate_is_idle(bench):
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.DONE])


async def test_nothing_starts_while_a_caller_waits(bench):
    with bench.gate.busy(), bench.gate.busy() as done:
        bench.shadows.offer(nothing)
        done()
        await asyncio.sleep(0.02)
        assert bench.began == 0  # the other one still waits
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.DONE])


async def test_a_caller_interrupts_a_piece_which_is_retried_once(bench):
    bench.shadows.offer(for_ever)
    for attempt in (1, 2):
        await bench.until(lambda attempt=attempt: bench.began == attempt)
        with bench.gate.busy():
            await bench.until(lambda attempt=attempt: bench.ended == attempt)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.INTERRUPTED])
    assert bench.began == 2
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.INTERRUPTED, ShadowOutcome.DONE])


async def test_a_caller_that_is_gone_at_once_interrupts_too(bench):
    bench.shadows.offer(for_ever)
    await bench.until(lambda: bench.began == 1)
    with bench.gate.busy():
        pass
    await bench.until(lambda: bench.began == 2)


async def test_one_at_a_time_from_a_bounded_queue(bench):
    running, most = 0, 0

    async def counted():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    with bench.gate.busy():
        for _ in range(20):
            bench.shadows.offer(counted)
        dropped = bench.outcomes.count(ShadowOutcome.DROPPED)
        assert 0 < dropped < 20 and bench.began == 0
    await bench.until(lambda: len(bench.outcomes) == 20)
    assert most == 1 and bench.outcomes.count(ShadowOutcome.DONE) == 20 - dropped


@pytest.mark.parametrize("error", [TargetUnavailable("away"), RuntimeError("secret"), asyncio.CancelledError()])
async def test_a_failure_is_counted_and_the_next_piece_is_done(bench, error, caplog):
    async def fails():
        raise error

    bench.shadows.offer(fails)
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.FAILED, ShadowOutcome.DONE])
    assert "secret" not in caplog.text


async def test_a_piece_that_takes_too_long_is_cancelled():
    bench = Bench(timeout_s=0.01)
    bench.shadows.offer(for_ever)
    await bench.until(lambda: bench.outcomes == [ShadowOutcome.FAILED])
    assert bench.ended == 1
    await bench.shadows.aclose()


async def test_a_stop_leaves_no_task(bench):
    before = asyncio.all_tasks()
    bench.shadows.offer(for_ever)
    bench.shadows.offer(nothing)
    await bench.until(lambda: bench.began == 1)
    await bench.shadows.aclose()
    assert asyncio.all_tasks() == before and bench.ended == 1


async def test_a_piece_does_not_inherit_the_callers_trace(bench):
    trace, seen = contextvars.ContextVar("trace", default="none"), []

    async def looks():
        seen.append(trace.get())

    trace.set("a caller's")
    bench.shadows.offer(looks)
    await bench.until(lambda: seen == ["none"])


async def test_a_stop_before_the_first_piece(bench):
    await bench.shadows.aclose()
