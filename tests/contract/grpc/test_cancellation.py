"""Callers who leave, deadlines that pass, and targets that die: what reaches whom."""

import asyncio

import grpc
import pytest

from presift.core.errors import InvalidRequest, Overloaded

from ..fakes.house import Answer, Refusal, refusal_of, request
from ..fakes.services import aborts, hangs, raises

LONG = list(range(100, 200))


async def test_cancellation_reaches_the_target_once(house):
    house.target.pause_after = 2
    call = house.stub.Generate(request([1, 2, 3]))
    kinds = [(await call.read()).WhichOneof("event") for _ in range(3)]
    assert kinds == ["decision", "delta", "delta"]
    call.cancel()
    await house.settle(lambda: house.target.running == 0)
    assert house.target.cancelled == 1
    house.target.pause_after = None
    assert (await house.ask([4, 5])).token_ids == [5, 4]
    assert house.target.cancelled == 1


async def test_64_cancelled_requests_leave_nothing_behind(house):
    house.target.pause_after = 1
    calls = [house.stub.Generate(request([n, n + 1, n + 2])) for n in range(64)]
    await house.settle(lambda: house.target.running == 64)
    for call in calls:
        call.cancel()
    await house.settle(lambda: house.target.running == 0)
    assert house.target.cancelled == 64


async def test_cancellation_reaches_the_draft(house):
    left = []

    async def wait(context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append("draft")
            raise

    house.draft.faults.append(wait)
    call = house.stub.Generate(request(LONG))
    await house.settle(lambda: len(house.draft.calls) == 1)
    call.cancel()
    await house.settle(lambda: left == ["draft"])
    assert house.target.calls == []


async def test_deadline_reaches_the_target(house):
    house.target.pause_after = 1
    call = house.stub.Generate(request([1, 2, 3]), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        [event async for event in call]
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await house.settle(lambda: house.target.running == 0)
    assert house.target.cancelled == 1


async def test_the_deadline_is_passed_on_to_the_target(house):
    left_s = []

    async def record(context):
        left_s.append(context.time_remaining())

    house.target.faults += [record, record]
    for timeout_s in (30, None):
        async for _ in house.stub.Generate(request([1, 2, 3]), timeout=timeout_s):
            pass
    limited_s, unlimited_s = left_s
    # gRPC sends a timeout with few digits, rounded up.
    assert unlimited_s is None and limited_s is not None and 0 < limited_s < 31


async def test_a_draft_that_takes_half_the_deadline_is_not_waited_for(house):
    house.draft.faults.append(hangs)
    answer = Answer.of([event async for event in house.stub.Generate(request(LONG), timeout=4)])
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_TIMEOUT")
    assert (await house.ask(LONG)).route == "SPEC_PC"


async def test_target_that_dies_mid_stream(house):
    house.target.die_after = 2
    call, events = house.stub.Generate(request([1, 2, 3])), []
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for event in call:
            events.append(event.WhichOneof("event"))
    refusal = Refusal.of(failure.value)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")
    assert "engine died" not in refusal.message
    assert events == ["decision", "delta", "delta"] and len(house.target.calls) == 1


async def test_target_that_goes_away_mid_stream(house):
    house.target.pause_after = 1
    call = house.stub.Generate(request([1, 2, 3]))
    await call.read(), await call.read()
    await house.target_server.grpc.stop(0)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    assert Refusal.of(failure.value).reason == "TARGET_UNAVAILABLE"


async def test_target_that_ends_without_usage(house):
    house.target.with_usage = False
    refusal = await house.refused([1, 2, 3])
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")


async def test_target_that_is_away(house):
    await house.target_server.grpc.stop(0)
    refusal = await house.refused([1, 2, 3])
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")


async def test_unavailable_target_is_tried_again_while_nothing_was_received(house):
    house.target.faults.append(aborts(grpc.StatusCode.UNAVAILABLE))
    assert (await house.ask([1, 2, 3])).token_ids == [3, 2, 1]
    assert len(house.target.calls) == 2


async def test_what_the_target_refuses_reaches_the_caller(house):
    house.target.faults.append(raises(InvalidRequest("sampling.temperature", 9, "0..2")))
    refusal = await house.refused([1, 2, 3])
    assert (refusal.code, refusal.reason, refusal.field) == (
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
        "sampling.temperature",
    )
    assert (refusal.value, refusal.limit) == ("9", "0..2")


async def test_overloaded_target_says_when_to_come_back(house):
    house.target.faults.append(raises(Overloaded("requests", 65, "<= 64", 2.5)))
    refusal = await house.refused([1, 2, 3])
    assert (refusal.code, refusal.reason, refusal.retry_after_s) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 2.5)


async def test_a_stop_lets_running_answers_finish(open_house):
    house = await open_house(drain_s=60.0)
    house.target.pause_after = 1
    asking = asyncio.create_task(house.ask([1, 2, 3]))
    await house.settle(lambda: house.target.running == 1)
    house.target.pause_after = None
    draining = asyncio.create_task(house.server.drain())
    refusal = await refusal_of(_until_refused(house))
    # CANCELLED: gRPC drops the call that arrives at the moment of the stop, before any code of presift runs.
    assert refusal.code in ("UNAVAILABLE", "CANCELLED")
    house.target.gate.set()
    answer = await asking
    assert isinstance(answer, Answer) and answer.token_ids == [3, 2, 1]
    await draining


async def _until_refused(house):
    while True:
        await house.ask([9], max_new_tokens=1)
