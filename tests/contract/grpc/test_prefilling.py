"""The target reads while the draft works: both at once, both ended together, and no harm where one fails."""

import asyncio
import time

import grpc
import pytest

from presift.core.errors import Overloaded
from presift.v1 import plan_pb2

from ..fakes.house import ALL_ROUTES, Answer, request
from ..fakes.services import aborts, hangs, raises, takes

LONG = list(range(100, 200))
KV = plan_pb2.ROUTE_SPEC_KV


@pytest.fixture
async def house(open_house):
    return await open_house(routes=ALL_ROUTES)


async def after(event):
    """A fault: the answer waits for the event."""
    await event.wait()


async def test_the_prefill_comes_before_the_draft_has_answered(house):
    async def sees_the_prefill(context):
        await house.settle(lambda: house.target.prefills)

    house.draft.faults.append(sees_the_prefill)
    answer = await house.ask(LONG, route=KV)
    assert (answer.route, answer.cache) == ("SPEC_KV", "MISS")
    (prefill,) = house.target.prefills
    assert list(prefill.token_ids) == LONG and prefill.cache_salt == house.target.calls[0].cache_salt


async def test_times_overlap(house):
    house.draft.faults.append(takes(0.4))
    house.target.prefill_faults.append(takes(0.4))
    started = time.perf_counter()
    answer = await house.ask(LONG, route=KV)
    wall_ms = (time.perf_counter() - started) * 1000
    decision = answer.decision
    assert decision.draft_ms >= 400 and decision.prefill_ms >= 400
    assert wall_ms < decision.draft_ms + decision.prefill_ms


@pytest.mark.parametrize("slow", ["draft", "target"])
async def test_generate_waits_for_both(house, slow):
    gate = asyncio.Event()
    faults = house.draft.faults if slow == "draft" else house.target.prefill_faults
    faults.append(lambda context: after(gate))
    asking = asyncio.create_task(house.ask(LONG, route=KV))
    await house.settle(lambda: house.draft.calls and house.target.prefills)
    await house.ask([1, 2])  # long enough for the other to have ended
    assert len(house.target.calls) == 1
    gate.set()
    assert (await asking).route == "SPEC_KV"


async def test_nothing_is_read_ahead_on_a_hit(house):
    for cache in ("MISS", "HIT", "HIT"):
        answer = await house.ask(LONG, route=KV)
        assert answer.cache == cache and (answer.decision.prefill_ms > 0) is (cache == "MISS")
    assert len(house.target.prefills) == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"route": KV, "kv": {"keep_full_prefix": False}},
        {"route": plan_pb2.ROUTE_SPEC_KV_PC, "kv": {"keep_full_prefix": True}},
        {"route": plan_pb2.ROUTE_SPEC_PC},
        {"route": plan_pb2.ROUTE_FULL},
    ],
    ids=lambda asked: plan_pb2.Route.Name(asked["route"]),
)
async def test_nothing_is_read_ahead_that_is_not_kept(house, asked):
    answer = await house.ask(LONG, **asked)
    assert answer.decision.prefill_ms == 0 and house.target.prefills == []


async def test_it_can_be_switched_off(open_house):
    house = await open_house(routes=ALL_ROUTES, prefills=False)
    assert (await house.ask(LONG, route=KV)).route == "SPEC_KV"
    assert house.target.prefills == []


FAULTS = {
    "defect": raises(RuntimeError("a defect")),
    "overloaded": raises(Overloaded("requests", 9, 8, 1.0)),
    "an older target": aborts(grpc.StatusCode.UNIMPLEMENTED),
    "cancelled by itself": aborts(grpc.StatusCode.CANCELLED),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_failed_prefill_fails_no_request(house, telemetry, fault):
    before = telemetry.total("presift.prefill.failures")
    house.target.prefill_faults.append(fault)
    answer = await house.ask(LONG, route=KV)
    assert (answer.route, answer.token_ids) == ("SPEC_KV", LONG[::-1][:5])
    assert answer.decision.prefill_ms == 0
    assert telemetry.total("presift.prefill.failures") == before + 1


@pytest.mark.parametrize("error", [RuntimeError("xylophone"), TimeoutError(), KeyError("xylophone")], ids=repr)
async def test_an_unexpected_error_of_a_prefill_fails_no_request(house, monkeypatch, telemetry, caplog, error):
    """Generate reads the prompt after any error, not only after those of presift."""

    async def prefill(*_):
        raise error

    before = telemetry.total("presift.prefill.failures")
    monkeypatch.setattr(house.remote_target, "prefill", prefill)
    answer = await house.ask(LONG, route=KV)
    assert (answer.route, answer.token_ids) == ("SPEC_KV", LONG[::-1][:5])
    assert answer.decision.prefill_ms == 0
    assert telemetry.total("presift.prefill.failures") == before + 1
    assert f"prefill failed: {type(error).__name__}" in caplog.text
    assert "xylophone" not in caplog.text


async def test_a_failed_prefill_is_logged_without_the_prompt(house, caplog):
    secret = "xylophone " * 12
    house.target.prefill_faults.append(raises(RuntimeError(secret)))
    await house.ask(secret, route=KV)
    assert "prefill failed: the target failed: INTERNAL" in caplog.text and "xylophone" not in caplog.text


async def test_a_draft_that_fails_leaves_the_prefix_to_the_full_route(house):
    gate = asyncio.Event()
    house.target.prefill_faults.append(lambda context: after(gate))
    house.draft.faults.append(raises(Overloaded("queue", 9, 8, 2.0)))
    asking = asyncio.create_task(house.ask(LONG, route=KV))
    await house.settle(lambda: house.draft.calls and house.target.prefills)
    await house.ask([1, 2])
    assert len(house.target.calls) == 1  # LONG's own is not there yet
    gate.set()
    answer = await asking
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_OVERLOADED")
    assert answer.usage.cached_tokens == len(LONG) - 1 and answer.decision.prefill_ms > 0


async def test_a_draft_that_fails_a_strict_budget_ends_the_prefill(house):
    house.target.prefill_faults.append(hangs)

    async def fails_later(context):
        await house.settle(lambda: house.target.prefills)
        raise Overloaded("queue", 9, 8, 2.0)

    house.draft.faults.append(fails_later)
    refusal = await house.refused(LONG, route=KV, budget={"max_kv_tokens": 20, "strict": True})
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAFT_UNAVAILABLE")
    await house.settle(lambda: house.target.prefills_cancelled == 1)


async def test_a_slow_draft_is_not_waited_for_and_the_prefix_is_there(house):
    house.draft.faults.append(hangs)
    answer = Answer.of([event async for event in house.stub.Generate(request(LONG, route=KV), timeout=4)])
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_TIMEOUT")
    assert answer.usage.cached_tokens == len(LONG) - 1


def left_behind():
    return [task for task in asyncio.all_tasks() if "prefill" in repr(task.get_coro()) or "single" in task.get_name()]


async def test_a_disconnect_cancels_both_once(house):
    house.draft.faults.append(hangs)
    house.target.prefill_faults.append(hangs)
    call = house.stub.Generate(request(LONG, route=KV))
    await house.settle(lambda: house.draft.calls and house.target.prefills)
    call.cancel()
    await house.settle(lambda: house.draft.cancelled and house.target.prefills_cancelled)
    assert (house.draft.cancelled, house.target.prefills_cancelled) == (1, 1)
    await house.settle(lambda: not left_behind())
    assert house.target.calls == []
    answer = await house.ask(LONG, route=KV)
    assert (answer.route, answer.cache) == ("SPEC_KV", "MISS")
    assert (house.draft.cancelled, house.target.prefills_cancelled) == (1, 1)


@pytest.mark.parametrize("slow", ["draft", "target"])
async def test_a_disconnect_cancels_the_call_that_still_runs(house, slow):
    (house.draft.faults if slow == "draft" else house.target.prefill_faults).append(hangs)
    call = house.stub.Generate(request(LONG, route=KV))
    await house.settle(lambda: house.draft.calls and house.target.prefills)
    await house.ask([1, 2])
    call.cancel()
    await house.settle(lambda: house.draft.cancelled + house.target.prefills_cancelled == 1)
    await house.settle(lambda: not left_behind())
    assert (house.draft.cancelled, house.target.prefills_cancelled) == ((1, 0) if slow == "draft" else (0, 1))


async def test_64_disconnects_leave_no_tasks_or_calls(house):
    house.draft.gate.clear()
    house.target.prefill_faults.extend([hangs] * 64)
    prompts = [[n, *LONG] for n in range(64)]
    calls = [house.stub.Generate(request(prompt, route=KV)) for prompt in prompts]
    await house.settle(lambda: len(house.target.prefills) == len(house.draft.calls) == 64)
    for call in calls:
        call.cancel()
    await house.settle(lambda: house.draft.cancelled == house.target.prefills_cancelled == 64)
    await house.settle(lambda: not left_behind())


async def test_equal_requests_cost_one_prefill(house):
    house.draft.gate.clear()
    gate = asyncio.Event()
    house.target.prefill_faults.extend([lambda context: after(gate)] * 8)
    asking = [asyncio.create_task(house.ask(LONG, route=KV)) for _ in range(8)]
    await house.settle(lambda: house.draft.calls and house.target.prefills)
    await house.ask([1, 2])  # a server takes calls in turn: the eight before this one wait for the draft
    house.draft.gate.set()
    await house.settle(lambda: house.draft.answered == 1)
    await house.ask([1, 2])
    assert len(house.target.calls) == 2  # none of the eight generates before the prompt is read
    gate.set()
    answers = await asyncio.gather(*asking)
    assert len(house.target.prefills) == len(house.draft.calls) == 1
    assert sorted(answer.cache for answer in answers) == ["MISS"] + ["SHARED"] * 7
    assert all(answer.usage.kv_tokens == answers[0].usage.kv_tokens for answer in answers)


async def test_a_disconnect_does_not_cancel_another_callers_answer(house):
    house.draft.gate.clear()
    house.target.prefill_faults.append(hangs)
    first = house.stub.Generate(request(LONG, route=KV))
    await house.settle(lambda: house.draft.calls and house.target.prefills)
    second = asyncio.create_task(house.ask(LONG, route=KV))
    await house.ask([1, 2])
    first.cancel()
    await house.settle(lambda: house.target.prefills_cancelled == 1)
    house.draft.gate.set()
    answer = await second
    assert (answer.route, answer.cache, house.draft.cancelled) == ("SPEC_KV", "SHARED", 0)


async def test_the_trace_shows_both(house, telemetry):
    telemetry.forget_spans()
    await house.ask(LONG, route=KV)
    await house.settle(lambda: {"score", "prefill", "decode"} <= {span.name for span in telemetry.spans})
    score, prefill = (next(span for span in telemetry.spans if span.name == name) for name in ("score", "prefill"))
    assert prefill.context.trace_id == score.context.trace_id
