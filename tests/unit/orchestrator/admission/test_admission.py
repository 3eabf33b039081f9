"""Slots: how many there are, who waits for one, who is rejected, and that none is lost."""

import asyncio
import random
import time

import pytest

from presift.core.errors import DeadlineExceeded, InvalidRequest, Overloaded
from presift.orchestrator.admission import admission as module
from presift.orchestrator.admission.admission import Admission, QueueLimits
from presift.orchestrator.admission.request_cost import RequestCost
from presift.rpc.deadline import NO_DEADLINE, Deadline

SMALL = RequestCost(tokens=100, held_bytes=1000)


class Caller:
    """A request: it holds its slot until `leave`."""

    def __init__(self, admission, tenant="", cost=SMALL, left_s=None):
        self.name, self._gone = tenant, asyncio.Event()
        self.slot = None
        self.task = asyncio.create_task(self._go(admission, tenant, cost, left_s))
        # One that is refused and never asked must not log that in a later test, when it is collected.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _go(self, admission, tenant, cost, left_s):
        async with admission.slot(tenant, cost, Deadline.within(left_s)) as self.slot:
            await self._gone.wait()

    async def leave(self):
        self._gone.set()
        await self.task


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def come(admission, *tenants, **options):
    callers = [Caller(admission, tenant, **options) for tenant in tenants]
    await settled()
    return callers


def empty(admission):
    held = (admission.running, admission.waiting, admission.running_bytes, admission.waiting_bytes)
    return (*held, admission._queue.tenants) == (0, 0, 0, 0, 0)


async def test_requests_run_up_to_the_limit_and_the_others_wait():
    admission = Admission(QueueLimits(2, 10))
    callers = await come(admission, *"aaaa")
    assert (admission.running, admission.waiting, admission.waiting_bytes) == (2, 2, 2000)
    for caller in callers:
        await caller.leave()
    assert empty(admission)


async def test_the_next_is_another_tenant():
    admission = Admission(QueueLimits(1, 600))
    flood = await come(admission, *["flood"] * 500)
    (single,) = await come(admission, "single")
    await flood[0].leave()
    await settled()
    assert single.slot is not None and flood[1].slot is None
    for caller in (*flood[1:], single):
        caller.task.cancel()
    await settled()
    assert empty(admission)


async def test_too_many_are_rejected_with_a_retry_time():
    admission = Admission(QueueLimits(1, 2))
    callers = await come(admission, *"aaaa")
    with pytest.raises(Overloaded) as refusal:
        await callers[3].task
    error = refusal.value
    assert (error.field, error.value, error.limit) == ("waiting_requests", 3, "<= 2")
    assert error.retry_after_s > 0
    for caller in callers[:3]:
        await caller.leave()
    assert empty(admission)


async def test_too_many_bytes_are_rejected():
    admission = Admission(QueueLimits(1, 100, max_bytes=3500))
    callers = await come(admission, *"aaaa")
    with pytest.raises(Overloaded) as refusal:
        await callers[3].task
    assert (refusal.value.field, refusal.value.value, refusal.value.limit) == ("request_bytes", 4000, "<= 3500")
    (huge,) = await come(admission, "b", cost=RequestCost(1, 4000))
    with pytest.raises(Overloaded):
        await huge.task
    assert admission.waiting == 2, "a request that can never fit evicts none"
    for caller in callers[:3]:
        await caller.leave()
    assert empty(admission)


async def test_running_requests_count_too():
    admission = Admission(QueueLimits(10, 10, max_bytes=2500))
    first, second, third = await come(admission, *"abc")
    with pytest.raises(Overloaded) as refusal:
        await third.task
    assert (admission.running, refusal.value.field) == (2, "request_bytes")
    await first.leave()
    (fourth,) = await come(admission, "d")
    assert fourth.slot is not None
    for caller in (second, fourth):
        await caller.leave()
    assert empty(admission)


async def test_a_request_larger_than_the_limit_runs_alone():
    admission = Admission(QueueLimits(10, 10, max_bytes=500))
    first, second = await come(admission, *"ab")
    assert first.slot is not None
    with pytest.raises(Overloaded):
        await second.task
    await first.leave()
    assert empty(admission)


async def test_with_a_queue_of_zero_none_waits():
    admission = Admission(QueueLimits(1, 0))
    first, second = await come(admission, *"ab")
    with pytest.raises(Overloaded):
        await second.task
    await first.leave()
    assert empty(admission)


@pytest.mark.parametrize("limits", [QueueLimits(1, 10), QueueLimits(1, 100, max_bytes=11_000)], ids=["number", "bytes"])
async def test_a_flood_is_evicted_in_favour_of_another_tenant(limits):
    admission = Admission(limits)
    flood = await come(admission, *["flood"] * 11)
    (single,) = await come(admission, "single")
    assert not single.task.done()
    with pytest.raises(Overloaded) as refusal:
        await flood[-1].task
    assert refusal.value.retry_after_s > 0
    assert not any(caller.task.done() for caller in flood[:-1])
    await flood[0].leave()
    await settled()
    assert single.slot is not None
    for caller in (*flood[1:-1], single):
        caller.task.cancel()
    await settled()
    assert empty(admission)


async def test_two_floods_share_the_queue():
    admission = Admission(QueueLimits(1, 10))
    first = await come(admission, *["a"] * 11)  # kept, so that no pending task is garbage-collected
    others = await come(admission, *["b"] * 11)
    waiting = [caller for caller in others if not caller.task.done()]
    assert len(first) == 11 and len(waiting) == 5 and admission.waiting == 10


async def test_a_deadline_ends_the_wait():
    admission = Admission(QueueLimits(1, 10))
    first, second = Caller(admission), Caller(admission, left_s=0.01)
    with pytest.raises(DeadlineExceeded):
        await second.task
    assert (admission.running, admission.waiting, admission.waiting_bytes) == (1, 0, 0)
    await first.leave()
    assert empty(admission)


async def test_a_slot_can_be_closed_before_the_block_ends_and_only_once():
    admission = Admission(QueueLimits(1, 10))
    first, second = await come(admission, *"aa")
    first.slot.close()
    await settled()
    assert second.slot is not None and admission.running == 1
    first.slot.close()
    await first.leave()
    assert admission.running == 1
    await second.leave()
    assert empty(admission)


async def test_an_error_releases_the_slot():
    admission = Admission(QueueLimits(1, 10))
    with pytest.raises(RuntimeError):
        async with admission.slot("", SMALL, NO_DEADLINE):
            raise RuntimeError
    assert empty(admission)


async def test_a_request_cancelled_just_after_admission_releases_its_slot():
    admission = Admission(QueueLimits(1, 10))
    first, second, third = await come(admission, *"aaa")
    first.slot.close()  # `second` is admitted, but its task has not run yet
    second.task.cancel()
    await settled()
    assert third.slot is not None and admission.running == 1
    await first.leave()
    await third.leave()
    assert empty(admission)


@pytest.mark.parametrize("leaves", ["cancelled", "late"])
async def test_a_slot_comes_free_just_as_the_next_waiter_is_cancelled(leaves):
    """The slot goes to the waiter behind it."""
    admission = Admission(QueueLimits(1, 10))
    (first,) = await come(admission, "a")
    second = Caller(admission, "a", left_s=0.05 if leaves == "late" else None)
    await settled()
    (third,) = await come(admission, "a")
    if leaves == "late":
        time.sleep(0.06)  # its deadline and the end of the first fall into one iteration of the loop
        asyncio.get_running_loop().call_later(0, first.slot.close)
        await asyncio.sleep(0)
    else:
        second.task.cancel()
        first.slot.close()
    await settled()
    assert third.slot is not None and admission.running == 1
    await first.leave()
    await third.leave()
    with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
        await second.task
    assert empty(admission)


async def test_none_is_evicted_for_a_request_that_is_rejected_anyway(monkeypatch):
    counted = []
    monkeypatch.setattr(module, "count", lambda name, **attributes: counted.append(attributes))
    admission = Admission(QueueLimits(1, 2, 4000))
    running, *waiting = await come(admission, *"abb")
    with pytest.raises(Overloaded) as refused:
        async with admission.slot("c", RequestCost(tokens=100, held_bytes=2500), NO_DEADLINE):
            raise RuntimeError
    assert refused.value.details["field"] == "request_bytes"
    assert admission.waiting == 2 and admission.waiting_bytes == 2000
    assert counted == [{"field": "request_bytes"}]
    for each in (running, *waiting):
        await each.leave()
    assert empty(admission)


async def test_no_slot_is_lost_under_load():
    admission, rng = Admission(QueueLimits(3, 20, 15_000)), random.Random(5)
    callers = []
    for _ in range(600):
        callers.append(Caller(admission, rng.choice("abcd"), left_s=rng.choice([None, 0.001, 1.0])))
        if rng.random() < 0.5:
            rng.choice(callers).task.cancel()
        if rng.random() < 0.4:
            rng.choice(callers)._gone.set()
        await asyncio.sleep(0)
        assert admission.running <= 3 and admission.waiting <= 20
        assert admission.running_bytes + admission.waiting_bytes <= 15_000
    for caller in callers:
        caller._gone.set()
    await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)
    assert empty(admission)


async def test_the_retry_time_follows_the_duration_of_requests():
    now = 0.0
    admission = Admission(QueueLimits(1, 0), clock=lambda: now)
    for _ in range(30):
        async with admission.slot("", SMALL, NO_DEADLINE):
            now += 8.0
    first, second = await come(admission, *"ab")
    with pytest.raises(Overloaded) as refusal:
        await second.task
    assert refusal.value.retry_after_s == pytest.approx(8.0, rel=0.05)
    await first.leave()


def test_a_limit_of_zero_running_requests_is_invalid():
    with pytest.raises(InvalidRequest):
        QueueLimits(max_running=0)
