"""The target reads while the draft works: both at once, both ended together, and no harm where one fails."""

import asyncio
import time

import grpc
import pytest

from presift.core.errors import Overloaded
from presift.v1 import plan_pb2

from ..fakes.services import aborts, hangs, raises, takes
from ..fakes.stack import ALL_ROUTES, Answer, request

LONG = list(range(100, 200))
KV = plan_pb2.ROUTE_SPEC_KV


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES)


async def after(event):
    """A fault: the answer waits for the event."""
    await event.wait()


async def test_the_prefill_comes_before_the_draft_has_answered(stack):
    async def sees_the_prefill(context):
        await stack.settle(lambda: stack.target.prefills)

    stack.draft.faults.append(sees_the_prefill)
    answer = await stack.ask(LONG, route=KV)
    assert (answer.route, answer.cache) == ("SPEC_KV", "MISS")
    (prefill,) = stack.target.prefills
    assert list(prefill.token_ids) == LONG and prefill.cache_salt == stack.target.calls[0].cache_salt


async def test_times_overlap(stack):
    stack.draft.faults.append(takes(0.4))
    stack.target.prefill_faults.append(takes(0.4))
    started = time.perf_counter()
    answer = await stack.ask(LONG, route=KV)
    wall_ms = (time.perf_counter() - started) * 1000
    decision = answer.decision
    assert decision.draft_ms >= 400 and decision.prefill_ms >= 400
    assert wall_ms < decision.draft_ms + decision.prefill_ms


@pytest.mark.parametrize("slow", ["draft", "target"])
async def test_generate_waits_for_both(stack, slow):
    gate = asyncio.Event()
    faults = stack.draft.faults if slow == "draft" else stack.target.prefill_faults
    faults.append(lambda context: after(gate))
    asking = asyncio.create_task(stack.ask(LONG, route=KV))
    await stack.settle(lambda: stack.draft.calls and stack.target.prefills)
    await stack.ask([1, 2])  # long enough for the other to have ended
    assert len(stack.target.calls) == 1
    gate.set()
    assert (await asking).route == "SPEC_KV"


async def test_nothing_is_read_ahead_on_a_hit(stack):
    for cache in ("MISS", "HIT", "HIT"):
        answer = await stack.ask(LONG, route=KV)
        assert answer.cache == cache and (answer.decision.prefill_ms > 0) is (cache == "MISS")
    assert len(stack.target.prefills) == 1


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
async def test_nothing_is_read_ahead_that_is_not_kept(stack, asked):
    answer = await stack.ask(LONG, **asked)
    assert answer.decision.prefill_ms == 0 and stack.target.prefills == []


async def test_it_can_be_switched_off(open_stack):
    stack = await open_stack(routes=ALL_ROUTES, prefills=False)
    assert (await stack.ask(LONG, route=KV)).route == "SPEC_KV"
    assert stack.target.prefills == []


FAULTS = {
    "defect": raises(RuntimeError("a defect")),
    "overloaded": raises(Overloaded("requests", 9, 8, 1.0)),
    "an older target": aborts(grpc.StatusCode.UNIMPLEMENTED),
    "cancelled by itself": aborts(grpc.StatusCode.CANCELLED),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_failed_prefill_fails_no_request(stack, telemetry, fault):
    before = telemetry.total("presift.prefill.failures")
    stack.target.prefill_faults.append(fault)
    answer = await stack.ask(LONG, route=KV)
    assert (answer.route, answer.token_ids) == ("SPEC_KV", LONG[::-1][:5])
    assert answer.decision.prefill_ms == 0
    assert telemetry.total("presift.prefill.failures") == before + 1


@pytest.mark.parametrize("error", [RuntimeError("xylophone"), TimeoutError(), KeyError("xylophone")], ids=repr)
async def test_an_unexpected_error_of_a_prefill_fails_no_request(stack, monkeypatch, telemetry, caplog, error):
    """Generate reads the prompt after any error, not only after those of presift."""

    async def prefill(*_):
        raise error

    before = telemetry.total("presift.prefill.failures")
    monkeypatch.setattr(stack.remote_target, "prefill", prefill)
    answer = await stack.ask(LONG, route=KV)
    assert (answer.route, answer.token_ids) == ("SPEC_KV", LONG[::-1][:5])
    assert answer.decision.prefill_ms == 0
    assert telemetry.total("presift.prefill.failures") == before + 1
    assert f"prefill failed: {type(error).__name__}" in caplog.text
    assert "xylophone" not in caplog.text


async def test_a_failed_prefill_is_logged_without_the_prompt(stack, caplog):
    secret = "xylophone " * 12
    stack.target.prefill_faults.append(raises(RuntimeError(secret)))
    await stack.ask(secret, route=KV)
    assert "prefill failed: the target failed: INTERNAL" in caplog.text and "xylophone" not in caplog.text


async def test_a_draft_that_fails_leaves_the_prefix_to_the_full_route(stack):
    gate = asyncio.Event()
    stack.target.prefill_faults.append(lambda context: after(gate))
    stack.draft.faults.append(raises(Overloaded("queue", 9, 8, 2.0)))
    asking = asyncio.create_task(stack.ask(LONG, route=KV))
    await stack.settle(lambda: stack.draft.calls and stack.target.prefills)
    await stack.ask([1, 2])
    assert len(stack.target.calls) == 1  # LONG's own is not there yet
    gate.set()
    answer = await asking
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_OVERLOADED")
    assert answer.usage.cached_tokens == len(LONG) - 1 and answer.decision.prefill_ms > 0


async def test_a_draft_that_fails_a_strict_budget_ends_the_prefill(stack):
    stack.target.prefill_faults.append(hangs)

    async def fails_later(context):
        await stack.settle(lambda: stack.target.prefills)
        raise Overloaded("queue", 9, 8, 2.0)

    stack.draft.faults.append(fails_later)
    refusal = await stack.refused(LONG, route=KV, budget={"max_kv_tokens": 20, "strict": True})
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAFT_UNAVAILABLE")
    await stack.settle(lambda: stack.target.prefills_cancelled == 1)


async def test_a_slow_draft_is_not_waited_for_and_the_prefix_is_there(stack):
    stack.draft.faults.append(hangs)
    answer = Answer.of([event async for event in stack.stub.Generate(request(LONG, route=KV), timeout=4)])
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_TIMEOUT")
    assert answer.usage.cached_tokens == len(LONG) - 1


def left_behind():
    return [task for task in asyncio.all_tasks() if "prefill" in repr(task.get_coro()) or "single" in task.get_name()]


async def test_a_disconnect_cancels_both_once(stack):
    stack.draft.faults.append(hangs)
    stack.target.prefill_faults.append(hangs)
    call = stack.stub.Generate(request(LONG, route=KV))
    await stack.settle(lambda: stack.draft.calls and stack.target.prefills)
    call.cancel()
    await stack.settle(lambda: stack.draft.cancelled and stack.target.prefills_cancelled)
    assert (stack.draft.cancelled, stack.target.prefills_cancelled) == (1, 1)
    await stack.settle(lambda: not left_behind())
    assert stack.target.calls == []
    answer = await stack.ask(LONG, route=KV)
    assert (answer.route, answer.cache) == ("SPEC_KV", "MISS")
    assert (stack.draft.cancelled, stack.target.prefills_cancelled) == (1, 1)


@pytest.mark.parametrize("slow", ["draft", "target"])
async def test_a_disconnect_cancels_the_call_that_still_runs(stack, slow):
    (stack.draft.faults if slow == "draft" else stack.target.prefill_faults).append(hangs)
    call = stack.stub.Generate(request(LONG, route=KV))
    await stack.settle(lambda: stack.draft.calls and stack.target.prefills)
    await stack.ask([1, 2])
    call.cancel()
    await stack.settle(lambda: stack.draft.cancelled + stack.target.prefills_cancelled == 1)
    await stack.settle(lambda: not left_behind())
    assert (stack.draft.cancelled, stack.target.prefills_cancelled) == ((1, 0) if slow == "draft" else (0, 1))


async def test_64_disconnects_leave_no_tasks_or_calls(stack):
    stack.draft.gate.clear()
    stack.target.prefill_faults.extend([hangs] * 64)
    prompts = [[n, *LONG] for n in range(64)]
    calls = [stack.stub.Generate(request(prompt, route=KV)) for prompt in prompts]
    await stack.settle(lambda: len(stack.target.prefills) == len(stack.draft.calls) == 64)
    for call in calls:
        call.cancel()
    await stack.settle(lambda: stack.draft.cancelled == stack.target.prefills_cancelled == 64)
    await stack.settle(lambda: not left_behind())


async def test_equal_requests_cost_one_prefill(stack):
    stack.draft.gate.clear()
    gate = asyncio.Event()
    stack.target.prefill_faults.extend([lambda context: after(gate)] * 8)
    asking = [asyncio.create_task(stack.ask(LONG, route=KV)) for _ in range(8)]
    await stack.settle(lambda: stack.draft.calls and stack.target.prefills)
    await stack.ask([1, 2])  # a server takes calls in turn: the eight before this one wait for the draft
    stack.draft.gate.set()
    await stack.settle(lambda: stack.draft.answered == 1)
    await stack.ask([1, 2])
    assert len(stack.target.calls) == 2  # none of the eight generates before the prompt is read
    gate.set()
    answers = await asyncio.gather(*asking)
    assert len(stack.target.prefills) == len(stack.draft.calls) == 1
    assert sorted(answer.cache for answer in answers) == ["MISS"] + ["SHARED"] * 7
    assert all(answer.usage.kv_tokens == answers[0].usage.kv_tokens for answer in answers)


async def test_a_disconnect_does_not_cancel_another_callers_answer(stack):
    stack.draft.gate.clear()
    stack.target.prefill_faults.append(hangs)
    first = stack.stub.Generate(request(LONG, route=KV))
    await stack.settle(lambda: stack.draft.calls and stack.target.prefills)
    second = asyncio.create_task(stack.ask(LONG, route=KV))
    await stack.ask([1, 2])
    first.cancel()
    await stack.settle(lambda: stack.target.prefills_cancelled == 1)
    stack.draft.gate.set()
    answer = await second
    assert (answer.route, answer.cache, stack.draft.cancelled) == ("SPEC_KV", "SHARED", 0)


async def test_the_trace_shows_both(stack, telemetry):
    telemetry.forget_spans()
    await stack.ask(LONG, route=KV)
    await stack.settle(lambda: {"score", "prefill", "decode"} <= {span.name for span in telemetry.spans})
    score, prefill = (next(span for span in telemetry.spans if span.name == name) for name in ("score", "prefill"))
    assert prefill.context.trace_id == score.context.trace_id
