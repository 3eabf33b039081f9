"""What the orchestrator tells of its requests as metrics, of good ones and bad ones, and what its gauges show."""

import asyncio

import grpc
import pytest

from presift.v1 import plan_pb2

from ..fakes.services import raises
from ..fakes.stack import Refusal, request

LONG = list(range(100, 200))
DURATION, TTFT = "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"
WORDS = {"genai_operation": "text_completion", "model": "target"}


async def grown(telemetry, stack, work, *names, **words):
    """By how much each of these has grown once `work` is done and the orchestrator is idle."""
    before = [telemetry.total(name, **words) for name in names]
    try:
        await work
    except Exception as error:
        assert Refusal.of(error).code
    await stack.settle(lambda: stack.admission.running == 0 and stack.server.calls.running == 0)
    return [telemetry.total(name, **words) - old for name, old in zip(names, before, strict=True)]


async def test_an_answer_is_timed(stack, telemetry):
    names = (DURATION, TTFT, "gen_ai.server.time_per_output_token", "presift.forecast.ratio")
    told = await grown(telemetry, stack, stack.ask(LONG), *names, route="spec_pc")
    assert told == [1, 1, 1, 1]
    assert telemetry.total(DURATION, **WORDS, route="spec_pc") >= 1


async def test_of_a_single_token_there_is_no_time_between_tokens(stack, telemetry):
    name = "gen_ai.server.time_per_output_token"
    assert await grown(telemetry, stack, stack.ask(LONG, max_new_tokens=1), name) == [0]


async def test_accepted_tokens_take_no_time_between_tokens(stack, telemetry):
    name = "gen_ai.server.time_per_output_token"
    for accepted, steps in ((4, 1), (5, 0)):

        def report(usage, accepted=accepted):
            usage.accepted_tokens = accepted

        stack.target.spoil = report
        assert await grown(telemetry, stack, stack.ask(LONG, max_new_tokens=5), name) == [steps]


async def test_ttft_is_recorded_relative_to_the_full_forecast(stack, telemetry):
    name = "presift.forecast.against_full"
    assert await grown(telemetry, stack, stack.ask(LONG), name, route="spec_pc") == [1]
    assert await grown(telemetry, stack, stack.ask(LONG, route=plan_pb2.ROUTE_FULL), name, route="full") == [0]


async def test_tokens_are_counted_both_ways(stack, telemetry):
    for kind in ("input", "output"):
        name, words = "gen_ai.client.token.usage", {"route": "spec_pc", "token_type": kind}
        assert await grown(telemetry, stack, stack.ask(LONG), name, **words) == [1]


async def test_an_operation_is_named(stack, telemetry):
    assert await grown(telemetry, stack, stack.ask([("user", "hi")]), DURATION, genai_operation="chat") == [1]
    assert await grown(telemetry, stack, stack.ask("hi"), DURATION, genai_operation="text_completion") == [1]


@pytest.mark.parametrize(
    ("fault", "error"),
    [(None, "PROMPT_TOO_LONG"), (RuntimeError("defect"), "TARGET_UNAVAILABLE")],
)
async def test_a_failure_is_timed_and_named(stack, telemetry, fault, error):
    prompt, options = ([5] * 500, {"route": plan_pb2.ROUTE_FULL}) if fault is None else ([5, 6], {})
    if fault is not None:
        stack.target.faults.append(raises(fault))
    assert await grown(telemetry, stack, stack.ask(prompt, **options), DURATION, TTFT, error=error) == [1, 0]


async def test_a_caller_that_disconnects_is_not_counted_as_an_error(stack, telemetry):
    stack.target.pause_after = 1

    async def leave():
        call = stack.stub.Generate(request([5, 6, 7]))
        async for event in call:
            if event.HasField("delta"):
                break
        call.cancel()

    assert await grown(telemetry, stack, leave(), DURATION, error="CANCELLED") == [1]


async def test_a_deadline_that_passes_is_not_counted_as_a_disconnect(stack, telemetry):
    stack.target.pause_after = 1

    async def wait():
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stack.stub.Generate(request([5, 6, 7]), timeout=0.3):
                pass

    assert await grown(telemetry, stack, wait(), DURATION, error="DEADLINE_EXCEEDED") == [1]


async def test_stages_are_timed(stack, telemetry):
    stages = ("protect", "tokenize", "route", "cache.get", "cache.claim", "score", "cache.put", "first_token", "decode")
    name = "presift.orchestrator.stage.duration"
    before = {stage: telemetry.total(name, stage=stage) for stage in stages}
    await stack.ask("xylophone " * 10)
    assert {stage: telemetry.total(name, stage=stage) - before[stage] for stage in stages} == dict.fromkeys(stages, 1)


def shown(stack):
    """name -> {attributes: value} of all gauges."""
    found = {}
    for each in stack.app.gauges:
        found.setdefault(each.name, {}).update({tuple(words.values()): value for value, words in each.read()})
    return found


async def test_gauges_show_how_full_it_is(stack):
    idle = shown(stack)
    assert idle["presift.admission.running"] == {(): 0} and idle["presift.admission.waiting.tenants"] == {(): 0}
    assert idle["presift.leases.held"] == {("draft",): 0, ("tenant",): 0}
    assert idle["presift.guard.off"] == {} and idle["presift.answers.unread.bytes"] == {(): 0}
    with stack.pipeline.parts.answer_bytes.waiting(None, print) as answer:
        answer.add(7)
        assert shown(stack)["presift.answers.unread.bytes"] == {(): 7}
    stack.target.pause_after = 1
    asking = asyncio.create_task(stack.ask([5, 6, 7]))
    await stack.settle(lambda: stack.target.running == 1)
    assert shown(stack)["presift.admission.running"] == {(): 1}
    stack.target.gate.set()
    await asking
    assert shown(stack)["presift.admission.running"] == {(): 0}


async def test_gauges_count_usable_and_unusable_replicas(open_stack):
    stack = await open_stack(drafts=2)
    await stack.settle(lambda: shown(stack)["presift.replicas"][("draft", "usable")] == 2)
    assert shown(stack)["presift.replicas"] == {
        ("draft", "usable"): 2,
        ("draft", "unusable"): 0,
        ("target", "usable"): 1,
        ("target", "unusable"): 0,
    }
    await stack.draft_servers[1].grpc.stop(0)
    await stack.settle(lambda: shown(stack)["presift.replicas"][("draft", "unusable")] == 1)
