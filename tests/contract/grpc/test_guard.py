"""The quality guard over the wire: what it compares, when it switches a route off, and that no caller meets it."""

import asyncio
from dataclasses import replace
from random import Random

import grpc
import numpy as np
import pytest

from presift.core.errors import Overloaded
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.quality.sampler import Sampler
from presift.orchestrator.routing.quality_gate import Thresholds
from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2

from ..fakes.clients import CLIENTS
from ..fakes.services import aborts, hangs, model, raises
from ..fakes.stack import ALL_ROUTES, DEFAULTS, refusal_of, request, wire_prompt

LONG = list(range(1, 201))
WRONG = [7] * 100
PC, KV = plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV
ALL = Sampler(1.0)
QUICK = Thresholds(least_samples=3, window=6)


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES, sampler=ALL, thresholds=QUICK)


def bad(request):
    """The planted policy: whatever was compressed is answered wrongly."""
    compressed = request.HasField("kv_plan") or len(request.token_ids) < 100
    return WRONG if compressed else request.token_ids[::-1]


async def compared(stack, samples):
    """Wait until so many were compared; the first quality."""
    await stack.settle(lambda: [each.samples for each in stack.guard.qualities()][:1] == [samples])
    return stack.guard.qualities()[0]


async def trip(stack, route=KV, **options):
    stack.target.answer = bad
    for first in range(3):
        await stack.ask([first + 900, *LONG], route=route, **options)
        await stack.settle(lambda first=first: [each.samples for each in stack.guard.qualities()] in ([first + 1], [0]))
    (quality,) = stack.guard.qualities()
    assert quality.is_off
    return quality


async def test_the_callers_greedy_answer_is_compared_with_fulls(stack):
    answer = await stack.ask(LONG, route=KV)
    quality = await compared(stack, 1)
    own, full = stack.target.calls
    assert own.HasField("kv_plan") and not full.HasField("kv_plan") and list(full.token_ids) == LONG
    assert full.cache_salt == own.cache_salt and full.sampling.max_new_tokens == 5
    assert (quality.overlap, quality.exact_share, quality.first_divergence) == (1.0, 1.0, None)
    assert answer.route == "SPEC_KV"


async def test_of_a_long_answer_the_beginning_is_compared(open_stack):
    stack = await open_stack(sampler=Sampler(1.0, max_new_tokens=4), thresholds=QUICK)
    assert len((await stack.ask(LONG, route=PC, max_new_tokens=50)).token_ids) == 16
    quality = await compared(stack, 1)
    # The window of 4 tokens is kept; what comes behind it differs, and is not asked for.
    assert quality.overlap == 1.0 and stack.target.calls[-1].sampling.max_new_tokens == 4


async def test_facts_count_in_any_order(stack, telemetry):
    """The stack's tokens are bytes."""
    texts = {True: "Crates: b12 red, a7 blue.", False: "Crates: a7 blue, b12 red."}
    stack.target.answer = lambda request: tokens_of(stack, texts[request.HasField("kv_plan")])
    counted = telemetry.total("presift.guard.facts", route="spec_kv")
    await stack.ask(LONG, route=KV, max_new_tokens=60)
    quality = await compared(stack, 1)
    assert quality.overlap < 0.8 and quality.fact_share == 1.0
    assert quality.agreement == pytest.approx((quality.overlap + 2) / 3)
    assert telemetry.total("presift.guard.facts", route="spec_kv") == counted + 1
    texts[True] = "Crates: a7 blue, b13 red, c14 grey."  # of full's two, one
    await stack.ask([5, *LONG], route=KV, max_new_tokens=60)
    assert (await compared(stack, 2)).fact_share == 0.75


async def test_a_fact_that_the_limit_cuts_is_not_compared(stack):
    texts = {True: "a7 and no more", False: "a7 and b12 are"}
    stack.target.answer = lambda request: tokens_of(stack, texts[request.HasField("kv_plan")])
    await stack.ask(LONG, route=KV, max_new_tokens=9)
    assert (await compared(stack, 1)).fact_share == 1.0


def tokens_of(stack, text):
    return stack.tokenizer.backend.encode(text).ids


async def test_where_the_caller_sampled_both_ways_are_answered_greedily(stack):
    await stack.ask(LONG, route=KV, sampling={"temperature": 0.8, "seed": 3})
    await compared(stack, 1)
    own, again, full = stack.target.calls
    assert own.sampling.temperature == pytest.approx(0.8)
    assert again.kv_plan == own.kv_plan and not full.HasField("kv_plan")
    assert [each.sampling.temperature for each in (again, full)] == [0, 0] and not full.sampling.HasField("seed")


async def test_what_binds_the_callers_answer_binds_both_that_are_compared(open_stack):
    """A call that a grammar forces is compared with one that it forces too."""
    stack = await open_stack(routes=ALL_ROUTES, sampler=ALL, thresholds=QUICK, abilities={"grammars": True})
    chat = wire_prompt([("user", "x" * 200), ("assistant", "y" * 30), ("user", "why?")])
    chat.chat.tools_json.append('{"type": "function", "function": {"name": "add", "parameters": {}}}')
    forced = target_pb2.TOOL_CHOICE_REQUIRED
    answer = await stack.ask(chat, tool_choice=forced, route=KV, budget={"max_kv_tokens": 200})
    assert answer.route == "SPEC_KV"
    await stack.settle(lambda: len(stack.target.calls) == 2)
    own, full = stack.target.calls
    assert own.HasField("kv_plan") and not full.HasField("kv_plan")
    assert full.format == own.format and own.format.tool_choice == forced


@pytest.mark.parametrize("asked", [{"route": plan_pb2.ROUTE_FULL}, {"budget": {"compress_above_tokens": 300}}])
async def test_what_is_read_in_full_is_not_sampled(stack, asked):
    await stack.ask(LONG, **asked)
    await asyncio.sleep(0.02)
    assert len(stack.target.calls) == 1 and stack.guard.qualities() == []


@pytest.mark.parametrize("budget", [{"max_kv_tokens": 10}, {"auto_capacity": {"coverage": 0.05}}])
async def test_what_the_callers_own_limits_made_tighter_is_not_sampled(stack, budget):
    """Ten of KV everyone gets, and the final token."""
    assert (await stack.ask(LONG, route=KV, budget=budget)).route == "SPEC_KV"
    await asyncio.sleep(0.02)
    assert stack.guard.qualities() == []
    await stack.ask(LONG, route=KV, budget={"max_kv_tokens": 11})
    await compared(stack, 1)


async def test_what_full_cannot_answer_is_not_sampled(stack):
    assert (await stack.ask([1] * 500)).route == "SPEC_PC"
    await asyncio.sleep(0.02)
    assert len(stack.target.calls) == 1


async def test_the_share_is_what_was_set(open_stack):
    stack = await open_stack(routes=ALL_ROUTES, sampler=Sampler(0.25, random=Random(5)), thresholds=Thresholds(1e-9))
    random, expected = Random(5), 0
    for first in range(40):
        await stack.ask([first + 300, *LONG], route=KV, max_new_tokens=1)
        expected += random.random() < 0.25
        await stack.settle(lambda expected=expected: sum(q.samples for q in stack.guard.qualities()) == expected)
    assert 2 < expected < 20
    await asyncio.sleep(0.02)
    assert len(stack.target.calls) == 40 + expected


async def test_a_planted_bad_policy_is_switched_off_and_reported(stack, telemetry, caplog):
    band = {"route": "spec_kv", "band": "128-255"}
    names = {"samples": {"outcome": "compared"}, "switched": {}}
    names |= {name: {} for name in ("agreement", "overlap", "exact", "first_divergence")}

    def totals():
        return {name: telemetry.total(f"presift.guard.{name}", **band, **more) for name, more in names.items()}

    before = totals()
    await trip(stack)
    await stack.settle(lambda: totals()["samples"] == before["samples"] + 3)  # counted last
    moved = {name: total - before[name] for name, total in totals().items()}
    expected = {"samples": 3, "agreement": 3, "overlap": 3, "exact": 0, "first_divergence": 3, "switched": 1}
    assert moved == expected
    assert (
        "route spec_kv is switched off for 128-255 prompt tokens of one tenant: mean agreement with full 0.000"
        in caplog.text
    )
    named = await stack.ask(LONG, route=KV)
    assert (named.route, named.reason, named.token_ids) == ("FULL", "ROUTE_SWITCHED_OFF", LONG[::-1][:5])
    assert "spec_kv is switched off for 128-255 tokens" in named.decision.detail
    auto = await stack.ask([5, *LONG], budget={"max_kv_tokens": 50})
    assert (auto.route, "spec_kv is switched off" in auto.decision.detail) == ("SPEC_PC", True)
    assert (await stack.ask(list(range(1, 101)), route=KV)).route == "SPEC_KV"  # another length


async def test_auto_reads_all_where_nothing_else_is_on(open_stack):
    stack = await open_stack(sampler=ALL, thresholds=QUICK, target=model("target", context_tokens=1000))
    await trip(stack, PC)
    answer = await stack.ask(LONG)
    assert (answer.route, answer.reason) == ("FULL", "ROUTE_SWITCHED_OFF")
    asked = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG))
    assert (await stack.stub.Explain(asked)).decision.reason == answer.decision.reason


async def test_what_cannot_be_read_in_full_stays_compressed_and_says_so(open_stack):
    defaults = replace(DEFAULTS, compress_above_tokens=100)
    stack = await open_stack(sampler=ALL, thresholds=QUICK, defaults=defaults)
    stack.target.answer = bad
    for first in range(3):
        await stack.ask([first + 1, *range(1, 300)], route=PC)
        await stack.settle(lambda first=first: [q.samples for q in stack.guard.qualities()] in ([first + 1], [0]))
    too_long = list(range(1, 451))
    for route in (PC, plan_pb2.ROUTE_UNSPECIFIED):
        answer = await stack.ask(too_long, route=route)
        assert answer.route == "SPEC_PC" and "although spec_pc is switched off" in answer.decision.detail
    strict = {"max_prompt_tokens": 50, "strict": True}
    for route in (PC, plan_pb2.ROUTE_UNSPECIFIED):
        answer = await stack.ask(list(range(1, 301)), route=route, budget=strict)
        assert answer.route == "SPEC_PC" and "although spec_pc is switched off" in answer.decision.detail


async def test_a_switched_off_route_recovers_through_shadow_requests(stack):
    await trip(stack)
    stack.target.answer = lambda request: request.token_ids[::-1]
    for number in range(3):
        answer = await stack.ask([number + 300, *LONG], route=KV)
        assert (answer.route, answer.reason) == ("FULL", "ROUTE_SWITCHED_OFF")
        await stack.settle(lambda number=number: stack.guard.qualities()[0].samples == (number + 1) % 3)
        *_, own, shadow = stack.target.calls
        assert not own.HasField("kv_plan") and shadow.HasField("kv_plan")  # the caller's answer is full's
    assert not stack.guard.qualities()[0].is_off
    assert (await stack.ask(LONG, route=KV)).route == "SPEC_KV"


async def test_a_later_turn_does_not_go_on_with_what_is_switched_off(stack):
    first = await stack.ask(LONG, route=KV)
    await compared(stack, 1)
    stack.target.answer = bad
    for start in range(300, 305):
        await stack.ask([start, *LONG], route=KV)
        await stack.settle(lambda: stack.target.running == 0)
    await stack.settle(lambda: stack.guard.qualities()[0].is_off)
    turn = {"continue_prompt_tokens": first.decision.prompt_tokens}
    later = await stack.ask([*LONG, 1, 2, 3], route=KV, kv=turn)
    assert (later.route, later.decision.continued) == ("FULL", False)


async def test_healthy_requests_switch_nothing_off(open_stack):
    """One answer in five differs from full's. The unit test of the gate has 500 requests and several seeds."""
    stack = await open_stack(routes=ALL_ROUTES, sampler=ALL, thresholds=Thresholds(window=100))
    random = Random(1)

    def healthy(request):
        differs = request.HasField("kv_plan") and random.random() < 0.2
        return WRONG if differs else request.token_ids[::-1]

    stack.target.answer = healthy
    for number in range(100):
        answer = await stack.ask([number, *LONG], route=KV, max_new_tokens=2)
        assert answer.route == "SPEC_KV"
        await stack.settle(lambda number=number: [q.samples for q in stack.guard.qualities()] == [number + 1])
    (quality,) = stack.guard.qualities()
    assert not quality.is_off and quality.since is None and 0.7 < quality.overlap < 0.9


async def test_a_new_caller_cancels_the_shadow_request(stack):
    stack.target.faults.extend([nothing, hangs])
    await stack.ask(LONG, route=KV)
    await stack.settle(lambda: len(stack.target.calls) == 2)
    assert (await stack.ask([4, 5])).token_ids == [5, 4]
    await stack.settle(lambda: stack.target.cancelled == 1)
    assert (await compared(stack, 1)).overlap == 1.0  # it was tried again
    assert stack.target.calls[-1] == stack.target.calls[1]


async def nothing(context):
    pass


async def test_no_shadow_begins_while_a_caller_waits(stack):
    stack.draft.faults.append(hangs)
    waiting = stack.stub.Generate(request(LONG, route=PC))
    await stack.settle(lambda: len(stack.draft.calls) == 1)
    await stack.ask([300, *LONG], route=KV)
    await asyncio.sleep(0.02)
    assert len(stack.target.calls) == 1
    waiting.cancel()
    await compared(stack, 1)


async def test_a_shadow_request_does_not_wait_for_a_decoding_caller(stack):
    stack.target.pause_after = 2
    decoding = stack.stub.Generate(request([1, 2, 3]))
    [await decoding.read() for _ in range(3)]
    await stack.ask(LONG, route=KV, max_new_tokens=1)
    await compared(stack, 1)
    assert stack.target.running == 1
    stack.target.gate.set()
    decoding.cancel()


FAULTS = {
    "overloaded": raises(Overloaded("requests", 65, "<= 64", 2.5)),
    "unknown": aborts(grpc.StatusCode.UNKNOWN),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_shadow_that_fails_reaches_no_caller(stack, telemetry, fault):
    failed = telemetry.total("presift.guard.samples", outcome="failed")
    stack.target.faults.extend([nothing, fault])
    assert len((await stack.ask(LONG, route=KV)).token_ids) == 5
    await stack.settle(lambda: telemetry.total("presift.guard.samples", outcome="failed") == failed + 1)
    assert stack.guard.qualities() == [] and len((await stack.ask([1, 2])).token_ids) == 2


async def test_cancelled_answers_are_not_sampled(stack):
    stack.target.pause_after = 1
    call = stack.stub.Generate(request(LONG, route=KV))
    await call.read(), await call.read()
    call.cancel()
    await stack.settle(lambda: stack.target.cancelled == 1)
    await asyncio.sleep(0.02)
    assert len(stack.target.calls) == 1


async def test_a_stop_ends_the_shadow(stack):
    stack.target.faults.extend([nothing, hangs])
    await stack.ask(LONG, route=KV)
    await stack.settle(lambda: len(stack.target.calls) == 2)
    await stack.guard.aclose()
    await stack.settle(lambda: stack.target.cancelled == 1)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "shadows"]


async def test_shadows_are_no_callers(open_stack, telemetry):
    estimator = CostEstimator()
    stack = await open_stack(routes=ALL_ROUTES, sampler=ALL, thresholds=QUICK, estimator=estimator)
    names = ("requests", "ttft", "kv.tokens", "prompt.tokens")
    before = [telemetry.total(f"presift.{name}", route="full") for name in names]
    await stack.ask(LONG, route=PC, max_new_tokens=8)
    await compared(stack, 1)
    assert [telemetry.total(f"presift.{name}", route="full") for name in names] == before
    costs = estimator.state(*asked(stack, LONG)).costs
    assert costs.target.observations == 1 and estimator.reading.wait_ms == 0


async def test_what_a_shadow_read_is_expected_in_the_targets_cache(open_stack):
    estimator = CostEstimator()
    stack = await open_stack(sampler=ALL, thresholds=QUICK, estimator=estimator, salt="tenant")
    await stack.ask(LONG, route=PC)
    await compared(stack, 1)
    found = [estimator.state(*asked(stack, LONG), salt=salt).cached_tokens for salt in ("tenant", "", "other")]
    assert found == [192, 0, 0]
    assert {call.cache_salt for call in stack.target.calls} == {"tenant"}


def asked(stack, prompt):
    return np.asarray(prompt, dtype=np.uint32), stack.models.target.model, stack.models.draft


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_info_reports_the_quality(stack, client):
    await trip(stack)
    await stack.ask([*LONG, 5], route=PC, max_new_tokens=3)
    await stack.settle(lambda: len(stack.guard.qualities()) == 2)
    told = client(stack.address)
    try:
        pc, kv = sorted((await told.info()).route_quality, key=lambda quality: quality.route, reverse=True)[::-1]
    finally:
        await told.aclose()
    off, on = (kv, pc) if kv.route == "spec_kv" else (pc, kv)
    assert (off.switched_off, off.samples, off.mean_overlap, off.exact_share) == (True, 0, None, None)
    assert (off.mean_agreement, off.mean_fact_share) == (None, None)
    assert (on.mean_agreement, on.mean_fact_share) == (0.0, None)
    assert (off.min_tokens, off.max_tokens) == (128, 255) and off.since is not None and off.since.tzinfo is not None
    assert (on.route, on.switched_off, on.samples, on.mean_overlap, on.since) == ("spec_pc", False, 1, 0.0, None)
    assert on.mean_first_divergence == 0.0


async def test_the_full_route_refuses_what_is_too_long_as_ever(stack):
    await trip(stack)
    refusal = await refusal_of(stack.ask([1] * 450, route=KV))
    assert refusal.reason == "PROMPT_TOO_LONG"
