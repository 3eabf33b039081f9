"""What the orchestrator tells of its requests as metrics, of good ones and bad ones, and what its gauges show."""

import asyncio

import grpc
import pytest

from presift.v1 import plan_pb2

from ..fakes.house import Refusal, request
from ..fakes.services import raises

LONG = list(range(100, 200))
DURATION, TTFT = "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"
WORDS = {"genai_operation": "text_completion", "model": "target"}


async def grown(telemetry, house, work, *names, **words):
    """By how much each of these has grown once `work` is done and the orchestrator is idle."""
    before = [telemetry.total(name, **words) for name in names]
    try:
        await work
    except Exception as error:
        assert Refusal.of(error).code
    await house.settle(lambda: house.admission.running == 0 and house.server.calls.running == 0)
    return [telemetry.total(name, **words) - old for name, old in zip(names, before, strict=True)]


async def test_an_answer_is_timed(house, telemetry):
    names = (DURATION, TTFT, "gen_ai.server.time_per_output_token", "presift.forecast.ratio")
    told = await grown(telemetry, house, house.ask(LONG), *names, route="spec_pc")
    assert told == [1, 1, 1, 1]
    assert telemetry.total(DURATION, **WORDS, route="spec_pc") >= 1


async def test_of_a_single_token_there_is_no_time_between_tokens(house, telemetry):
    name = "gen_ai.server.time_per_output_token"
    assert await grown(telemetry, house, house.ask(LONG, max_new_tokens=1), name) == [0]


async def test_accepted_tokens_take_no_time_between_tokens(house, telemetry):
    name = "gen_ai.server.time_per_output_token"
    for accepted, steps in ((4, 1), (5, 0)):

        def report(usage, accepted=accepted):
            usage.accepted_tokens = accepted

        house.target.spoil = report
        assert await grown(telemetry, house, house.ask(LONG, max_new_tokens=5), name) == [steps]


async def test_ttft_is_recorded_relative_to_the_full_forecast(house, telemetry):
    name = "presift.forecast.against_full"
    assert await grown(telemetry, house, house.ask(LONG), name, route="spec_pc") == [1]
    assert await grown(telemetry, house, house.ask(LONG, route=plan_pb2.ROUTE_FULL), name, route="full") == [0]


async def test_tokens_are_counted_both_ways(house, telemetry):
    for kind in ("input", "output"):
        name, words = "gen_ai.client.token.usage", {"route": "spec_pc", "token_type": kind}
        assert await grown(telemetry, house, house.ask(LONG), name, **words) == [1]


async def test_an_operation_is_named(house, telemetry):
    assert await grown(telemetry, house, house.ask([("user", "hi")]), DURATION, genai_operation="chat") == [1]
    assert await grown(telemetry, house, house.ask("hi"), DURATION, genai_operation="text_completion") == [1]


@pytest.mark.parametrize(
    ("fault", "error"),
    [(None, "PROMPT_TOO_LONG"), (RuntimeError("defect"), "TARGET_UNAVAILABLE")],
)
async def test_a_failure_is_timed_and_named(house, telemetry, fault, error):
    prompt, options = ([5] * 500, {"route": plan_pb2.ROUTE_FULL}) if fault is None else ([5, 6], {})
    if fault is not None:
        house.target.faults.append(raises(fault))
    assert await grown(telemetry, house, house.ask(prompt, **options), DURATION, TTFT, error=error) == [1, 0]


async def test_a_caller_that_disconnects_is_not_counted_as_an_error(house, telemetry):
    house.target.pause_after = 1

    async def leave():
        call = house.stub.Generate(request([5, 6, 7]))
        async for event in call:
            if event.HasField("delta"):
                break
        call.cancel()

    assert await grown(telemetry, house, leave(), DURATION, error="CANCELLED") == [1]


async def test_a_deadline_that_passes_is_not_counted_as_a_disconnect(house, telemetry):
    house.target.pause_after = 1

    async def wait():
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in house.stub.Generate(request([5, 6, 7]), timeout=0.3):
                pass

    assert await grown(telemetry, house, wait(), DURATION, error="DEADLINE_EXCEEDED") == [1]


async def test_stages_are_timed(house, telemetry):
    stages = ("protect", "tokenize", "route", "cache.get", "cache.claim", "score", "cache.put", "first_token", "decode")
    name = "presift.orchestrator.stage.duration"
    before = {stage: telemetry.total(name, stage=stage) for stage in stages}
    await house.ask("xylophone " * 10)
    assert {stage: telemetry.total(name, stage=stage) - before[stage] for stage in stages} == dict.fromkeys(stages, 1)


def shown(house):
    """name -> {attributes: value} of all gauges."""
    found = {}
    for each in house.app.gauges:
        found.setdefault(each.name, {}).update({tuple(words.values()): value for value, words in each.read()})
    return found


async def test_gauges_show_how_full_it_is(house):
    idle = shown(house)
    assert idle["presift.admission.running"] == {(): 0} and idle["presift.admission.waiting.tenants"] == {(): 0}
    assert idle["presift.leases.held"] == {("draft",): 0, ("tenant",): 0}
    assert idle["presift.guard.off"] == {} and idle["presift.answers.unread.bytes"] == {(): 0}
    with house.pipeline.parts.answer_bytes.waiting(None, print) as answer:
        answer.add(7)
        assert shown(house)["presift.answers.unread.bytes"] == {(): 7}
    house.target.pause_after = 1
    asking = asyncio.create_task(house.ask([5, 6, 7]))
    await house.settle(lambda: house.target.running == 1)
    assert shown(house)["presift.admission.running"] == {(): 1}
    house.target.gate.set()
    await asking
    assert shown(house)["presift.admission.running"] == {(): 0}


async def test_gauges_count_usable_and_unusable_replicas(open_house):
    house = await open_house(drafts=2)
    await house.settle(lambda: shown(house)["presift.replicas"][("draft", "usable")] == 2)
    assert shown(house)["presift.replicas"] == {
        ("draft", "usable"): 2,
        ("draft", "unusable"): 0,
        ("target", "usable"): 1,
        ("target", "unusable"): 0,
    }
    await house.draft_servers[1].grpc.stop(0)
    await house.settle(lambda: shown(house)["presift.replicas"][("draft", "unusable")] == 1)
