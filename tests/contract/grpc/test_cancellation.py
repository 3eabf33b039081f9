"""Callers who leave, deadlines that pass, and targets that die: what reaches whom."""

import asyncio

import grpc
import pytest

from presift.core.errors import InvalidRequest, Overloaded

from ..fakes.services import aborts, hangs, raises
from ..fakes.stack import Answer, Refusal, refusal_of, request

LONG = list(range(100, 200))


async def test_cancellation_reaches_the_target_once(stack):
    stack.target.pause_after = 2
    call = stack.stub.Generate(request([1, 2, 3]))
    kinds = [(await call.read()).WhichOneof("event") for _ in range(3)]
    assert kinds == ["decision", "delta", "delta"]
    call.cancel()
    await stack.settle(lambda: stack.target.running == 0)
    assert stack.target.cancelled == 1
    stack.target.pause_after = None
    assert (await stack.ask([4, 5])).token_ids == [5, 4]
    assert stack.target.cancelled == 1


async def test_64_cancelled_requests_leave_nothing_behind(stack):
    stack.target.pause_after = 1
    calls = [stack.stub.Generate(request([n, n + 1, n + 2])) for n in range(64)]
    await stack.settle(lambda: stack.target.running == 64)
    for call in calls:
        call.cancel()
    await stack.settle(lambda: stack.target.running == 0)
    assert stack.target.cancelled == 64


async def test_cancellation_reaches_the_draft(stack):
    left = []

    async def wait(context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append("draft")
            raise

    stack.draft.faults.append(wait)
    call = stack.stub.Generate(request(LONG))
    await stack.settle(lambda: len(stack.draft.calls) == 1)
    call.cancel()
    await stack.settle(lambda: left == ["draft"])
    assert stack.target.calls == []


async def test_deadline_reaches_the_target(stack):
    stack.target.pause_after = 1
    call = stack.stub.Generate(request([1, 2, 3]), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        [event async for event in call]
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stack.settle(lambda: stack.target.running == 0)
    assert stack.target.cancelled == 1


async def test_the_deadline_is_passed_on_to_the_target(stack):
    left_s = []

    async def record(context):
        left_s.append(context.time_remaining())

    stack.target.faults += [record, record]
    for timeout_s in (30, None):
        async for _ in stack.stub.Generate(request([1, 2, 3]), timeout=timeout_s):
            pass
    limited_s, unlimited_s = left_s
    # gRPC sends a timeout with few digits, rounded up.
    assert unlimited_s is None and limited_s is not None and 0 < limited_s < 31


async def test_a_draft_that_takes_half_the_deadline_is_not_waited_for(stack):
    stack.draft.faults.append(hangs)
    answer = Answer.of([event async for event in stack.stub.Generate(request(LONG), timeout=4)])
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_TIMEOUT")
    assert (await stack.ask(LONG)).route == "SPEC_PC"


async def test_target_that_dies_mid_stream(stack):
    stack.target.die_after = 2
    call, events = stack.stub.Generate(request([1, 2, 3])), []
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for event in call:
            events.append(event.WhichOneof("event"))
    refusal = Refusal.of(failure.value)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")
    assert "engine died" not in refusal.message
    assert events == ["decision", "delta", "delta"] and len(stack.target.calls) == 1


async def test_target_that_goes_away_mid_stream(stack):
    stack.target.pause_after = 1
    call = stack.stub.Generate(request([1, 2, 3]))
    await call.read(), await call.read()
    await stack.target_server.grpc.stop(0)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    assert Refusal.of(failure.value).reason == "TARGET_UNAVAILABLE"


async def test_target_that_ends_without_usage(stack):
    stack.target.with_usage = False
    refusal = await stack.refused([1, 2, 3])
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")


async def test_target_that_is_away(stack):
    await stack.target_server.grpc.stop(0)
    refusal = await stack.refused([1, 2, 3])
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")


async def test_unavailable_target_is_tried_again_while_nothing_was_received(stack):
    stack.target.faults.append(aborts(grpc.StatusCode.UNAVAILABLE))
    assert (await stack.ask([1, 2, 3])).token_ids == [3, 2, 1]
    assert len(stack.target.calls) == 2


async def test_what_the_target_refuses_reaches_the_caller(stack):
    stack.target.faults.append(raises(InvalidRequest("sampling.temperature", 9, "0..2")))
    refusal = await stack.refused([1, 2, 3])
    assert (refusal.code, refusal.reason, refusal.field) == (
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
        "sampling.temperature",
    )
    assert (refusal.value, refusal.limit) == ("9", "0..2")


async def test_overloaded_target_says_when_to_come_back(stack):
    stack.target.faults.append(raises(Overloaded("requests", 65, "<= 64", 2.5)))
    refusal = await stack.refused([1, 2, 3])
    assert (refusal.code, refusal.reason, refusal.retry_after_s) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 2.5)


async def test_a_stop_lets_running_answers_finish(open_stack):
    stack = await open_stack(drain_s=60.0)
    stack.target.pause_after = 1
    asking = asyncio.create_task(stack.ask([1, 2, 3]))
    await stack.settle(lambda: stack.target.running == 1)
    stack.target.pause_after = None
    draining = asyncio.create_task(stack.server.drain())
    refusal = await refusal_of(_until_refused(stack))
    # CANCELLED: gRPC drops the call that arrives at the moment of the stop, before any code of presift runs.
    assert refusal.code in ("UNAVAILABLE", "CANCELLED")
    stack.target.gate.set()
    answer = await asking
    assert isinstance(answer, Answer) and answer.token_ids == [3, 2, 1]
    await draining


async def _until_refused(stack):
    while True:
        await stack.ask([9], max_new_tokens=1)
