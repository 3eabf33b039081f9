"""AUTO over the wire: the least lossy route within the budget, the cheapest where nothing is lost, and coverage."""

from dataclasses import replace

import numpy as np
import pytest

from presift.core.errors import Overloaded, PromptTooLong
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge
from presift.orchestrator.routing.cost_model import TokenWork
from presift.v1 import draft_pb2, orchestrator_pb2, plan_pb2, target_pb2

from ..fakes.services import hangs, model, raises, takes
from ..fakes.stack import (
    ALL_ROUTES,
    CAPACITY,
    CASCADE,
    KV_CAPACITY,
    byte_tokenizer,
    quad_tokenizer,
    refusal_of,
    request,
    wire_prompt,
)

LONG = list(range(1, 201))
BY_MASK = {"selection": plan_pb2.KV_SELECTION_DRAFT_MASK}


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES)


@pytest.mark.parametrize(
    ("budget", "route", "reads", "holds"),
    [
        ({}, "SPEC_PC", CAPACITY, CAPACITY),
        ({"max_kv_tokens": 50}, "SPEC_KV", 200, 50),
        ({"max_kv_tokens": 12, "max_prompt_tokens": 40}, "SPEC_KV_PC", 40, 12),
        ({"max_prompt_tokens": 40}, "SPEC_PC", 40, 40),
        ({"max_kv_tokens": 200}, "FULL", 200, 200),
        ({"max_ttft_ms": 3_600_000}, "FULL", 200, 200),
    ],
)
async def test_the_least_lossy_within_the_budget(stack, budget, route, reads, holds):
    answer = await stack.ask(LONG, budget=budget)
    decision = answer.decision
    assert (answer.route, decision.kept_tokens, decision.kv_tokens) == (route, reads, holds)
    assert answer.usage.kv_tokens == holds and answer.token_ids
    assert answer.reason == ("WITHIN_BUDGET" if route == "FULL" else "OVER_BUDGET")
    assert decision.predicted_ttft_ms > 0


async def test_a_warm_prefix_is_read_in_full_until_the_target_says_otherwise(stack):
    await stack.ask(LONG, route=plan_pb2.ROUTE_FULL)
    warm = await stack.ask(LONG)
    assert (warm.route, warm.reason, warm.cache) == ("FULL", "CHEAPEST", "NOT_USED")
    assert "192 of 200" in warm.decision.detail and stack.draft.calls == []
    # The fake held 3 tokens, whatever was read: what it dropped is not expected again.
    assert warm.usage.cached_tokens == 3
    assert (await stack.ask(LONG)).route == "SPEC_PC"


async def test_a_warm_prefix_breaks_no_limit(stack):
    await stack.ask(LONG, route=plan_pb2.ROUTE_FULL)
    assert (await stack.ask(LONG, budget={"max_prompt_tokens": 50})).route == "SPEC_PC"


async def test_what_is_compressed_already_is_predicted_to_be_sooner(stack):
    cold, again = [await stack.ask(LONG) for _ in range(2)]
    assert (cold.cache, again.cache) == ("MISS", "HIT")
    assert again.decision.predicted_ttft_ms < cold.decision.predicted_ttft_ms


async def test_fallback_to_full_is_checked_against_max_ttft(stack, caplog):
    """By the first speeds the target takes 0.7 s to read 200 tokens, the draft and 16 of them 0.4 s."""
    budget, overloaded = {"max_ttft_ms": 600}, raises(Overloaded("queue", 9, 8, 2.0))
    stack.draft.faults.extend([overloaded] * 3)
    for first, asked, is_late in ((7, {}, False), (8, budget, True)):
        answer = await stack.ask([first, *LONG], route=plan_pb2.ROUTE_SPEC_PC, budget=asked)
        assert (answer.route, answer.reason) == ("FULL", "DRAFT_OVERLOADED")
        assert answer.decision.predicted_ttft_ms > 700 and ("over max_ttft_ms 600" in answer.decision.detail) is is_late
    refusal = await stack.refused(LONG, route=plan_pb2.ROUTE_SPEC_PC, budget=budget | {"strict": True})
    stack.draft.faults.append(overloaded)
    read = await stack.ask([9, *LONG], route=plan_pb2.ROUTE_SPEC_KV)
    assert read.reason == "DRAFT_OVERLOADED" and read.decision.predicted_ttft_ms < 300  # it was read meanwhile
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAFT_UNAVAILABLE")
    assert "over max_ttft_ms 600" in refusal.message and len(stack.target.calls) == 3
    said = [line.partition(":")[0] for line in caplog.messages if "draft_overloaded" in line]
    assert said == ["answered in full", "refused"]  # of a kind once, not for each request


@pytest.mark.parametrize("budget", [{"max_ttft_ms": 1}, {"max_ttft_ms": 1, "max_prompt_tokens": 40}])
async def test_a_time_that_cannot_be_met(stack, budget):
    answer = await stack.ask(LONG, budget=budget)
    assert answer.reason == "BUDGET_NOT_MET" and " ms of 1 " in answer.decision.detail
    refusal = await stack.refused(LONG, budget=budget | {"strict": True})
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BUDGET_EXCEEDED")
    assert refusal.field.startswith("budget.max_") and len(stack.target.calls) == 1


@pytest.mark.parametrize(
    ("least", "route", "drafts"),
    [(0.08, "SPEC_PC", 1), (0.1, "SPEC_KV_PC", 2), (0.5, "FULL", 3)],
)
async def test_too_little_coverage_takes_a_less_lossy_route(stack, least, route, drafts):
    """The fake draft covers what it keeps: 16 of 200 are 0.08, 24 are 0.12, then 11 of 24; of spec_kv 11 of 200."""
    answer = await stack.ask(LONG, budget={"min_coverage": least})
    assert (answer.route, len(stack.draft.calls)) == (route, drafts)
    assert answer.reason == ("OVER_BUDGET" if route == "SPEC_PC" else "COVERAGE_TOO_LOW")
    if route == "SPEC_KV_PC":
        assert answer.decision.kept_tokens == CASCADE and answer.usage.kv_tokens == KV_CAPACITY + 1
        assert "0.080" in answer.decision.detail and "0.1" in answer.decision.detail


async def test_coverage_of_a_named_route_counts_too(open_stack):
    stack = await open_stack()
    answer = await stack.ask(LONG, route=plan_pb2.ROUTE_SPEC_PC, budget={"min_coverage": 0.5})
    assert (answer.route, answer.reason, answer.decision.kept_tokens) == ("FULL", "COVERAGE_TOO_LOW", 200)
    strict = {"min_coverage": 0.5, "max_prompt_tokens": 50, "strict": True}
    refusal = await stack.refused(LONG, route=plan_pb2.ROUTE_SPEC_PC, budget=strict)
    assert (refusal.reason, refusal.field, refusal.limit) == ("BUDGET_EXCEEDED", "budget.min_coverage", ">= 0.5")


async def test_too_little_coverage_is_reported_if_the_prompt_cannot_be_read_in_full(open_stack):
    stack = await open_stack()
    answer = await stack.ask([1] * 500, budget={"min_coverage": 0.5})
    assert answer.route == "SPEC_PC" and "is below 0.5, but full does not fit the context" in answer.decision.detail


@pytest.mark.parametrize("kv", [{}, BY_MASK], ids=["by the target", "by mask"])
@pytest.mark.parametrize(("least", "route"), [(0.25, "SPEC_KV"), (0.26, "FULL")])
async def test_coverage_of_kv_counts_whoever_chooses_it(stack, kv, least, route):
    """50 of 200."""
    asked = {"route": plan_pb2.ROUTE_SPEC_KV, "kv": kv}
    answer = await stack.ask(LONG, budget={"max_kv_tokens": 50, "min_coverage": least}, **asked)
    assert answer.route == route and answer.usage.kv_tokens == (50 if route == "SPEC_KV" else 200)
    if route == "FULL":
        assert answer.reason == "COVERAGE_TOO_LOW" and "spec_kv covers 0.250" in answer.decision.detail
        strict = {"max_kv_tokens": 50, "min_coverage": least, "strict": True}
        refusal = await stack.refused(LONG, budget=strict, **asked)
        assert (refusal.reason, refusal.field) == ("BUDGET_EXCEEDED", "budget.min_coverage")


async def test_the_stages_of_a_cascade_each_cover_enough(stack):
    asked = {"route": plan_pb2.ROUTE_SPEC_KV_PC}
    budget = {"max_prompt_tokens": 100, "max_kv_tokens": 20}
    for least, route in ((0.2, "SPEC_KV_PC"), (0.21, "FULL")):
        answer = await stack.ask(LONG, budget=budget | {"min_coverage": least}, **asked)
        assert answer.route == route and ("covers 0.200" in answer.decision.detail) is (route == "FULL")


async def test_kv_coverage_is_reported_and_cached_for_all_min_coverages(stack):
    asked = {"route": plan_pb2.ROUTE_SPEC_KV}
    answers = [
        await stack.ask(LONG, budget={"max_kv_tokens": 50, "min_coverage": least}, **asked) for least in (0.1, 0.2)
    ]
    assert [answer.cache for answer in answers] == ["MISS", "HIT"]
    assert "49 KV tokens cover 0.250 by the draft's estimate" in answers[1].decision.detail
    assert answers[1].usage.reused_entry
    await stack.ask(LONG, budget={"max_kv_tokens": 50}, **asked)
    first, last = (call.kv_plan for call in (stack.target.calls[0], stack.target.calls[-1]))
    assert first == last  # the target is told nothing of it


async def test_without_min_coverage_the_draft_request_is_unchanged(stack):
    for route in (plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC):
        await stack.ask(LONG, route=route)
    plain, cascade = (call.policy for call in stack.draft.calls)
    assert not plain.spec_kv.HasField("adaptive") and not plain.spec_kv.HasField("mask")
    assert not cascade.spec_kv_pc.kv.HasField("adaptive")


async def test_an_unknown_coverage_is_named_and_does_not_count_as_enough(stack):
    def old(reply, request):
        reply.ClearField("kv_coverage")

    stack.draft.spoil = old
    asked, budget = {"route": plan_pb2.ROUTE_SPEC_KV}, {"max_kv_tokens": 50, "min_coverage": 0.1}
    answer = await stack.ask(LONG, budget=budget, **asked)
    assert answer.route == "SPEC_KV" and "the coverage is unknown, min_coverage is 0.1" in answer.decision.detail
    refusal = await stack.refused(LONG, budget=budget | {"strict": True}, **asked)
    assert refusal.field == "budget.min_coverage" and "spec_kv has an unknown coverage" in refusal.message


NARROW = model("draft", context_tokens=150)


async def test_auto_takes_no_route_whose_draft_cannot_read_the_prompt(open_stack):
    stack = await open_stack(routes=ALL_ROUTES, draft=NARROW)
    for budget in ({}, {"max_prompt_tokens": 50}, {"min_coverage": 0.5}):
        answer = await stack.ask(LONG, budget=budget)
        assert (answer.route, answer.reason) == ("FULL", "DRAFT_CONTEXT_TOO_SMALL") and stack.draft.calls == []
        assert "the draft reads at most 150 tokens, not 200 prompt tokens" in answer.decision.detail
    refusal = await stack.refused(LONG, budget={"max_prompt_tokens": 50, "strict": True})
    assert refusal.reason == "BUDGET_EXCEEDED" and "the draft reads at most 150" in refusal.message
    refusal = await stack.refused([1] * 500)
    assert refusal.reason == "PROMPT_TOO_LONG" and "the draft reads at most 150" in refusal.message


async def test_a_named_route_that_the_draft_refuses_is_answered_in_full_and_logged_once(open_stack, caplog):
    stack = await open_stack(routes=ALL_ROUTES, draft=NARROW)
    refusal = PromptTooLong("token_ids", "200 tokens with lookahead", "<= 150 (the draft's context)")
    stack.draft.faults.append(raises(refusal))
    answer = await stack.ask(LONG, route=plan_pb2.ROUTE_SPEC_PC, budget={"min_coverage": 0.5})
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_CONTEXT_TOO_SMALL")
    assert "150 (the draft's context)" in answer.decision.detail
    assert sum("answered in full" in line for line in caplog.messages) == 1


async def test_what_is_compressed_already_needs_no_draft_that_can_read_it(stack):
    await stack.ask(LONG)
    stack.models.draft = replace(stack.models.draft, context_tokens=150)
    answer = await stack.ask(LONG)
    assert (answer.route, len(stack.draft.calls)) == ("SPEC_PC", 2 - (answer.cache == "HIT"))
    assert (await stack.ask([7, *LONG])).route == "FULL"


async def test_a_draft_of_another_vocabulary_counts_other_tokens(open_stack):
    drafts = quad_tokenizer()
    fingerprint = VocabularyBridge(byte_tokenizer(), drafts).draft_fingerprint
    narrow = model("draft", context_tokens=60, tokenizer_fingerprint=fingerprint)
    stack = await open_stack(routes=ALL_ROUTES, draft=narrow, draft_tokenizer=drafts)
    answer = await stack.ask("four" * 50)
    assert answer.route == "SPEC_PC" and len(stack.draft.calls[0].token_ids) == 50


async def test_explain_makes_the_same_decision(stack):
    asked = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), budget=orchestrator_pb2.Budget(min_coverage=0.1))
    explained = (await stack.stub.Explain(asked)).decision
    assert explained.route == plan_pb2.ROUTE_SPEC_KV_PC
    assert explained.reason == orchestrator_pb2.DECISION_REASON_COVERAGE_TOO_LOW


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        ({"max_ttft_ms": 0}, "budget.max_ttft_ms"),
        ({"min_coverage": 0.0}, "budget.min_coverage"),
        ({"min_coverage": 1.5}, "budget.min_coverage"),
        ({"min_coverage": float("nan")}, "budget.min_coverage"),
    ],
)
async def test_limits_that_cannot_be(stack, budget, field):
    for ask in (stack.ask(LONG, budget=budget), explain(stack, budget)):
        refusal = await refusal_of(ask)
        assert (refusal.code, refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field)


def explain(stack, budget):
    asked = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), budget=orchestrator_pb2.Budget(**budget))
    return stack.stub.Explain(asked)


async def test_costs_are_learned_from_the_times_of_the_stages(open_stack):
    estimator = CostEstimator(prefills=True)
    stack = await open_stack(routes=ALL_ROUTES, estimator=estimator)
    for start in range(4):
        prompt = [start * 10 + 1, *LONG]
        for route in (plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV):
            await stack.ask(prompt, route=route, max_new_tokens=8)
    models = stack.models.target.model, stack.models.draft
    costs = estimator.state(np.arange(1, 300, dtype=np.uint32), *models).costs
    assert costs.is_observed and costs.decoding.observations and costs.selection.observations == 4
    # The fake target takes 7 ms for any prompt, without selection (11 + 4 ms).
    answer = await stack.ask([900, *LONG], route=plan_pb2.ROUTE_FULL)
    assert 2 < answer.decision.predicted_ttft_ms < 30
    assert estimator.reading.wait_ms == estimator.drafting.wait_ms == 0


async def test_the_wait_for_the_draft_is_not_learned_as_its_cost(open_stack):
    estimator = CostEstimator()
    stack = await open_stack(estimator=estimator)
    stack.draft.faults.append(takes(0.4))
    stack.draft.spoil = lambda reply, request: reply.timings.MergeFrom(draft_pb2.ScoreTimings(queue_ms=390.0))
    answer = await stack.ask(LONG)
    (draft,) = (each.curve for each in estimator.learned() if each.stage == "draft")
    reading = TokenWork(200, steps=stack.draft.calls[0].policy.spec_pc.lookahead_tokens - 1)
    assert answer.decision.draft_ms >= 400
    assert draft.ms(reading) == pytest.approx(answer.decision.draft_ms - 390, rel=0.1)


async def test_the_work_of_waiting_requests_is_queued_once(open_stack):
    """While nothing is answered, requests for different prompts wait for the draft; then more for the target."""
    estimator = CostEstimator(learns=False)
    stack = await open_stack(routes=ALL_ROUTES, estimator=estimator)
    stack.draft.gate.clear()
    calls, waits_ms = [], [0.0]
    for count in range(5):
        calls += [stack.stub.Generate(request([count + 1, *LONG], route=plan_pb2.ROUTE_SPEC_PC)) for _ in range(2)]
        await stack.settle(lambda drafts=count + 1: len(stack.draft.calls) == drafts)
        await stack.ask([1, 2])  # a server takes calls in turn: all before it wait for the draft
        waits_ms.append(estimator.drafting.wait_ms)
    assert waits_ms == pytest.approx([0.0, *(waits_ms[1] * (2 * count + 1) for count in range(5))])
    for call in calls:
        call.cancel()
    await stack.settle(lambda: estimator.drafting.wait_ms == 0)
    stack.target.faults.extend([hangs] * 5)
    calls, waits_ms = [], [0.0]
    for count in range(5):
        calls.append(stack.stub.Generate(request([count + 11, *LONG], route=plan_pb2.ROUTE_FULL)))
        await stack.settle(lambda: stack.target.running == len(calls))
        waits_ms.append(estimator.reading.wait_ms)
    assert waits_ms == pytest.approx([0.0, *(waits_ms[1] * (2 * count + 1) for count in range(5))])
    for call in calls:
        call.cancel()


async def test_a_cancelled_answer_is_no_pending_work(open_stack):
    estimator = CostEstimator(learns=False)
    stack = await open_stack(routes=ALL_ROUTES, estimator=estimator)
    stack.target.faults.append(hangs)
    call = stack.stub.Generate(request(LONG, route=plan_pb2.ROUTE_FULL))
    await stack.settle(lambda: stack.target.running == 1)
    assert estimator.reading.wait_ms > 0
    call.cancel()
    await stack.settle(lambda: stack.target.cancelled == 1)
    await stack.settle(lambda: estimator.reading.wait_ms == 0)


async def test_an_entry_that_the_target_holds_is_predicted_to_be_nearly_free(stack):
    cold, again = [await stack.ask(LONG, route=plan_pb2.ROUTE_SPEC_KV) for _ in range(2)]
    assert again.usage.reused_entry and again.decision.predicted_ttft_ms < cold.decision.predicted_ttft_ms / 5


async def test_the_next_turn_of_a_conversation_is_warm(open_stack):
    estimator = CostEstimator(learns=False)
    stack = await open_stack(routes=ALL_ROUTES, estimator=estimator)
    answer = await stack.ask(LONG, route=plan_pb2.ROUTE_FULL, max_new_tokens=100)
    assert len(answer.token_ids) == 100
    later = np.array([*LONG, *answer.token_ids, 5, 6, 7], dtype=np.uint32)
    assert estimator.state(later, stack.models.target.model, None).cached_tokens == 256


async def test_a_busy_target_is_predicted_to_be_slower(open_stack):
    stack = await open_stack(routes=ALL_ROUTES, estimator=CostEstimator(learns=False))
    calm = await stack.ask([7, *LONG], route=plan_pb2.ROUTE_FULL)
    load = target_pb2.TargetLoad(running=3, waiting=4, free_kv_tokens=5000)
    stack.target.spoil = lambda usage: usage.load.CopyFrom(load)
    await stack.ask([8, *LONG], route=plan_pb2.ROUTE_FULL)
    busy = await stack.ask([9, *LONG], route=plan_pb2.ROUTE_FULL)
    # Four others wait, and the fake takes 7 ms for any prompt.
    late_ms = busy.decision.predicted_ttft_ms - calm.decision.predicted_ttft_ms
    spent_ms = calm.decision.tokenize_ms + busy.decision.tokenize_ms
    assert 28 - spent_ms - 5 <= late_ms <= 28 + spent_ms + 5


async def test_free_slots_are_known_for_each_replica(open_stack):
    estimator = CostEstimator(learns=False)
    stack = await open_stack(routes=ALL_ROUTES, estimator=estimator)

    def state():
        return estimator.state(np.array(LONG, dtype=np.uint32), stack.models.target.model, None)

    for replica, free in (("a", 900), ("b", 30)):
        said = target_pb2.TargetUsage(replica=replica, load=target_pb2.TargetLoad(free_kv_tokens=free))
        stack.target.spoil = lambda usage, said=said: usage.MergeFrom(said)
        await stack.ask(LONG, route=plan_pb2.ROUTE_FULL)
        assert state().free_kv_tokens == free and state().answers == ()
    # 200 prompt tokens and 5 of the answer: the one under way is waited for.
    stack.target.pause_after = 1
    call = stack.stub.Generate(request(LONG, route=plan_pb2.ROUTE_FULL))
    await stack.settle(lambda: stack.target.running == 1 and state().answers)
    assert state().kv_wait_ms(205) == state().answers[0].remaining_ms > 0
    call.cancel()
    await stack.settle(lambda: not state().answers)
