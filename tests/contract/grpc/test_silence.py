"""Targets and requests that stand still: nothing holds a slot for ever, and the breaker learns of it."""

import asyncio

import pytest

from presift.rpc.circuit_breaker import BreakerState
from presift.rpc.pool.pool import FAILURES
from presift.v1 import plan_pb2

from ..fakes.services import hangs

FULL = plan_pb2.ROUTE_FULL


def breaker(stack):
    return stack.remote_target._pool.only.breaker


async def is_over(stack):
    await stack.settle(lambda: stack.target.running == 0 and stack.server.calls.running == 0)
    assert stack.admission.running == stack.admission.waiting == 0


async def test_an_answer_that_stands_still_ends_and_the_breaker_learns_of_it(open_stack):
    stack = await open_stack(target_idle_s=0.3)
    stack.target.pause_after = 2
    asked = [stack.refused([1, 2, 3, number], route=FULL, max_new_tokens=4) for number in range(FAILURES)]
    async with asyncio.timeout(30):
        refusals = await asyncio.gather(*asked)
    for refusal in refusals:
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")
        assert "the target sent nothing for 0.3 s" in refusal.message
    await is_over(stack)
    assert breaker(stack).state is BreakerState.OPEN and stack.target.cancelled == FAILURES


async def test_one_that_stands_still_while_others_go_on_is_no_failure_of_the_target(open_stack):
    # Longer than a busy machine keeps the others waiting.
    stack = await open_stack(target_idle_s=1.5)
    stack.target.pause_after = 2
    standing = [asyncio.create_task(stack.refused([1, 2, 3], route=FULL, max_new_tokens=4)) for _ in range(FAILURES)]
    await stack.settle(lambda: stack.target.running == FAILURES)
    while not all(each.done() for each in standing):
        await stack.ask([4, 5, 6], route=FULL, max_new_tokens=1)
        await asyncio.sleep(0.01)
    assert breaker(stack).state is BreakerState.CLOSED and breaker(stack)._failures == 0
    await is_over(stack)


async def test_a_slow_answer_goes_on(open_stack):
    """Each token comes in time, the whole answer takes longer."""
    stack = await open_stack(target_idle_s=0.5)
    stack.target.pause_after = 1

    async def continue_later():
        await asyncio.sleep(0.3)
        stack.target.gate.set()

    waking = asyncio.create_task(continue_later())
    answer = await stack.ask([1, 2, 3], route=FULL, max_new_tokens=3)
    assert answer.token_ids == [3, 2, 1] and waking.done()
    assert not [task for task in asyncio.all_tasks() if "read ahead" in task.get_name()]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_request_without_a_deadline_ends(open_stack, has_begun):
    stack = await open_stack(max_request_s=0.5)
    if has_begun:
        stack.target.pause_after = 2
    else:
        stack.target.faults.append(hangs)
    async with asyncio.timeout(30):
        refusal = await stack.refused([1, 2, 3], route=FULL, max_new_tokens=4)
    assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    await is_over(stack)
