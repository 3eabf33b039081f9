"""The queue in front of the model: order, limit, and a worker that is freed exactly once, whatever happens."""

import asyncio
import contextvars
import threading
import time

import pytest

from presift.core.errors import DeadlineExceeded, DraftUnavailable, Overloaded
from presift.draft.work_queue import WorkQueue
from presift.rpc.deadline import Deadline


class Gate:
    """A job that runs until it is opened, looking at its cancel token meanwhile."""

    def __init__(self):
        self.open, self.running, self.stopped = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, cancel):
        self.running.set()
        try:
            while not self.open.wait(0.002):
                cancel.check()
        finally:
            self.stopped.set()
        return "done"


@pytest.fixture
def queue():
    line = WorkQueue(max_queue=2)
    yield line
    line.close()


async def _until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


async def _occupied(queue):
    gate = Gate()
    holder = asyncio.create_task(queue.run(gate))
    await _until(gate.running.is_set)
    return gate, holder


async def test_first_come_first_served_one_at_a_time(queue):
    gate, holder = await _occupied(queue)
    order = []
    tasks = [asyncio.create_task(queue.run(lambda _, name=name: order.append(name))) for name in "ab"]
    await asyncio.sleep(0.02)
    assert order == []
    gate.open.set()
    await asyncio.gather(holder, *tasks)
    assert order == ["a", "b"]
    assert queue.in_flight == 0


async def test_a_full_queue_refuses_with_a_time_to_retry(queue):
    gate, holder = await _occupied(queue)
    waiting = [asyncio.create_task(queue.run(lambda _: None)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refusal:
        await queue.run(lambda _: None)
    assert refusal.value.retry_after_s > 0
    assert (refusal.value.field, refusal.value.value) == ("queue", 2)
    gate.open.set()
    await asyncio.gather(holder, *waiting)
    assert (await queue.run(lambda _: 7)).result == 7


async def test_a_flood_neither_refuses_nor_delays_another_tenant():
    queue = WorkQueue(max_queue=64)
    gate, holder = await _occupied(queue)
    order = []

    def job(tenant):
        return asyncio.create_task(queue.run(lambda _: order.append(tenant), tenant=tenant, work_tokens=1000))

    flood = [job("flood") for _ in range(64)]
    await asyncio.sleep(0)
    others = [job("one"), job("another"), job("one")]
    await asyncio.sleep(0.01)
    evicted = [each for each in flood if each.done()]
    assert evicted == flood[-3:] and not any(each.done() for each in others)
    for each in evicted:
        with pytest.raises(Overloaded) as refusal:
            await each
        assert refusal.value.field == "queue" and refusal.value.retry_after_s > 0
    with pytest.raises(Overloaded):  # the flood's own next job evicts none
        await queue.run(lambda _: None, tenant="flood")
    gate.open.set()
    await asyncio.gather(holder, *flood[:-3], *others)
    assert order.index("one") < 3 and order.index("another") < 3 and queue.in_flight == 0
    queue.close()


async def test_large_prompts_of_a_tenant_take_no_more_turns_than_small_ones_of_another():
    queue, order = WorkQueue(max_queue=64), []
    gate, holder = await _occupied(queue)
    tasks = [
        asyncio.create_task(queue.run(lambda _, name=name: order.append(name), tenant=name, work_tokens=tokens))
        for name, tokens in [("large", 9000)] * 5 + [("small", 1000)] * 20
    ]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(holder, *tasks)
    assert order[:20].count("large") <= 3
    queue.close()


async def test_no_job_waits_if_the_limit_is_zero():
    queue = WorkQueue(max_queue=0)
    gate, holder = await _occupied(queue)
    with pytest.raises(Overloaded):
        await queue.run(lambda _: None)
    gate.open.set()
    await holder
    queue.close()


async def test_the_wait_is_estimated_from_recent_jobs():
    queue = WorkQueue(max_queue=0)
    for _ in range(30):
        await queue.run(lambda _: time.sleep(0.01))
    gate, holder = await _occupied(queue)
    with pytest.raises(Overloaded) as refusal:
        await queue.run(lambda _: None)
    assert 0.005 < refusal.value.retry_after_s < 0.2
    gate.open.set()
    await holder
    queue.close()


async def test_a_cancelled_waiter_leaves_the_queue_at_once(queue):
    gate, holder = await _occupied(queue)
    ran = []
    waiter = asyncio.create_task(queue.run(ran.append))
    await asyncio.sleep(0.01)
    assert queue.in_flight == 2
    waiter.cancel()
    await asyncio.wait([waiter])
    assert queue.in_flight == 1
    gate.open.set()
    assert (await holder).result == "done"
    assert ran == []


async def test_a_cancelled_job_stops_and_only_then_the_next_begins(queue):
    gate, holder = await _occupied(queue)
    following = asyncio.create_task(queue.run(lambda _: gate.stopped.is_set()))
    await asyncio.sleep(0.01)
    holder.cancel()
    assert (await following).result is True
    assert holder.cancelled()
    assert queue.in_flight == 0


async def test_a_deadline_ends_the_wait_and_the_work(queue):
    gate, holder = await _occupied(queue)
    with pytest.raises(DeadlineExceeded, match="waiting"):
        await queue.run(lambda _: None, Deadline.within(0.02))
    gate.open.set()
    await holder
    with pytest.raises(DeadlineExceeded):
        await queue.run(Gate(), Deadline.within(0.02))
    assert queue.in_flight == 0


async def test_a_job_that_raises_frees_the_worker(queue):
    def fail(cancel):
        raise ValueError("planted")

    for _ in range(5):
        with pytest.raises(ValueError, match="planted"):
            await queue.run(fail)
    assert queue.in_flight == 0
    assert (await queue.run(lambda _: 1)).result == 1


async def test_places_survive_a_storm_of_cancellations():
    queue = WorkQueue(max_queue=1000)
    tasks = [
        asyncio.create_task(queue.run(lambda _: time.sleep(0.001), Deadline.within(0.05 if index % 3 else None)))
        for index in range(150)
    ]
    for index, task in enumerate(tasks):
        await asyncio.sleep(0.0005)
        if index % 2:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    unexpected = [r for r in results if isinstance(r, BaseException)]
    assert {type(r) for r in unexpected} <= {asyncio.CancelledError, DeadlineExceeded}
    assert queue.in_flight == 0
    assert (await queue.run(lambda _: 1)).result == 1
    queue.close()


async def test_closing_stops_the_running_job_and_refuses_the_rest(queue):
    gate, holder = await _occupied(queue)
    waiter = asyncio.create_task(queue.run(lambda _: None))
    await asyncio.sleep(0.01)
    await asyncio.to_thread(queue.close)
    assert gate.stopped.is_set()
    for task in (holder, waiter, queue.run(lambda _: None)):
        with pytest.raises(DraftUnavailable):
            await task
    assert queue.in_flight == 0


async def test_the_callers_trace_context_is_used(queue):
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    done = await queue.run(lambda _: variable.get())
    assert done.result == 5
    assert done.queue_ms >= 0
