"""Capacities that adapt, over the wire: the fewest tokens that reach a coverage, on every route, said and checked.

The fake draft's coverage is the share of tokens that it keeps.
"""

from dataclasses import replace

import pytest

from presift.orchestrator.domain.request import AutoCapacity
from presift.v1 import orchestrator_pb2, plan_pb2
from presift_client import AsyncClient

from ..fakes.stack import ALL_ROUTES, CASCADE, DEFAULTS, KV_CAPACITY, refusal_of, wire_prompt

LONG = list(range(1, 201))
PC, KV, KV_PC = plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC
BY_MASK = {"selection": plan_pb2.KV_SELECTION_DRAFT_MASK}


def auto(coverage, **bounds):
    return {"auto_capacity": orchestrator_pb2.AutoCapacity(coverage=coverage, **bounds)}


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES)


@pytest.mark.parametrize(
    ("coverage", "bounds", "kept", "told"),
    [
        (0.25, {"max_tokens": 100}, 50, "50 tokens reach coverage 0.25"),
        (0.75, {"max_tokens": 100}, 100, "100 tokens cover 0.500 of the requested 0.75"),
        (0.25, {"min_tokens": 70, "max_tokens": 100}, 70, "70 tokens reach coverage 0.25"),
        (0.001, {"max_tokens": 100}, 16, "16 tokens reach coverage 0.001"),
    ],
)
@pytest.mark.parametrize("route", [PC, plan_pb2.ROUTE_UNSPECIFIED])
async def test_a_prompt_is_as_short_as_the_coverage_allows(stack, route, coverage, bounds, kept, told):  # noqa: PLR0917
    answer = await stack.ask(LONG, route=route, budget=auto(coverage, **bounds))
    decision = answer.decision
    assert (answer.route, decision.kept_tokens, decision.kv_tokens) == ("SPEC_PC", kept, kept)
    assert (told if route == PC else "full needs 200 prompt tokens of 100") in decision.detail
    assert "keeps up to 100 prompt tokens; " in decision.detail and decision.coverage == pytest.approx(kept / 200)
    assert len(stack.target.calls[0].token_ids) == kept


async def test_adaptive_prompts_are_cached_by_requested_coverage(stack):
    asks = [
        auto(0.25, max_tokens=100),
        auto(0.25, max_tokens=100),
        auto(0.3, max_tokens=100),
        {"max_prompt_tokens": 100},
    ]
    answers = [await stack.ask(LONG, route=PC, budget=budget) for budget in asks]
    assert [answer.cache for answer in answers] == ["MISS", "HIT", "MISS", "MISS"]
    assert [answer.decision.kept_tokens for answer in answers] == [50, 50, 60, 100]
    assert answers[0].decision.detail == answers[1].decision.detail


@pytest.mark.parametrize("kv", [{}, BY_MASK], ids=["by the target", "by mask"])
@pytest.mark.parametrize(("coverage", "capacity"), [(0.25, 49), (0.9, 100)])
async def test_kv_is_as_little_as_the_coverage_allows(stack, kv, coverage, capacity):
    for cache in ("MISS", "HIT"):
        answer = await stack.ask(LONG, route=KV, kv=kv, budget=auto(coverage, max_tokens=101))
        decision, sent = answer.decision, stack.target.calls[-1].kv_plan
        assert (answer.route, answer.cache, decision.kept_tokens) == ("SPEC_KV", cache, 200)
        assert decision.kv_tokens == answer.usage.kv_tokens == capacity + 1
        assert sent.policy.capacity == capacity and not sent.policy.HasField("adaptive")
        assert decision.policy.spec_kv.capacity == 100 and f"; {capacity} KV tokens" in decision.detail
        # Whose queries choose is known to the target only; the draft's mask is measured.
        assert decision.HasField("coverage") == bool(kv)


async def test_a_plan_of_a_capacity_that_adapted_is_that_of_the_same_capacity_asked_for(stack):
    await stack.ask(LONG, route=KV, budget=auto(0.25, max_tokens=101))
    await stack.ask(LONG, route=KV, budget={"max_kv_tokens": 50})
    first, second = (call.kv_plan for call in stack.target.calls)
    assert first == second


@pytest.mark.parametrize("kv", [{}, BY_MASK], ids=["by the target", "by mask"])
async def test_kv_adapts_by_whole_pages(open_stack, kv):
    stack = await open_stack(routes=ALL_ROUTES, kv_page_tokens=16)
    answer = await stack.ask(LONG, route=KV, kv=kv, budget=auto(0.25, max_tokens=101))
    assert answer.usage.kv_tokens == 65 and stack.target.calls[0].kv_plan.policy.capacity == 64


async def test_both_stages_of_a_cascade_adapt(stack):
    answer = await stack.ask(LONG, route=KV_PC, budget=auto(0.25, max_tokens=120) | {"max_kv_tokens": 41})
    decision = answer.decision
    # 50 of 200, then 16, the least, of 50: a quarter would be 13.
    assert (answer.route, decision.kept_tokens, decision.kv_tokens) == ("SPEC_KV_PC", 50, 17)
    assert answer.usage.kv_tokens == 17 and "50 tokens reach coverage 0.25" in decision.detail
    small = await stack.ask(LONG, route=KV_PC, budget=auto(0.1, max_tokens=120) | {"max_kv_tokens": 41})
    assert (small.decision.kept_tokens, small.decision.kv_tokens) == (20, 20)
    assert small.decision.detail == "keeps up to 120 prompt and 41 KV tokens; 20 tokens reach coverage 0.1"


async def test_a_later_turn_goes_on_with_the_capacity_that_came_of_it(stack):
    first = await stack.ask(LONG, route=KV, budget=auto(0.25, max_tokens=101))
    longer = [*LONG, *first.token_ids, 5, 6]
    second = await stack.ask(longer, route=KV, kv={"continue_prompt_tokens": 200})
    assert second.decision.continued and second.decision.kv_tokens == 50 + len(longer) - 200


async def test_auto_coverage_setting_applies_by_default(open_stack):
    defaults = replace(DEFAULTS, auto_capacity=AutoCapacity(0.25))
    stack = await open_stack(routes=ALL_ROUTES, defaults=defaults)
    answer = await stack.ask(LONG, route=PC, budget={"max_prompt_tokens": 100})
    assert answer.decision.kept_tokens == 50 and "50 tokens reach" in answer.decision.detail


@pytest.mark.parametrize(
    ("least", "route", "kept"),
    [(0.1, "SPEC_PC", 40), (0.3, "SPEC_PC", 60), (0.5, "SPEC_PC", 100), (0.6, "FULL", 200)],
)
async def test_below_the_least_coverage_the_upper_bound_is_tried_before_another_route(stack, least, route, kept):
    budget = auto(0.2, max_tokens=100) | {"min_coverage": least}
    answer = await stack.ask(LONG, budget=budget)
    assert (answer.route, answer.decision.kept_tokens) == (route, kept)
    if route == "FULL":
        assert answer.reason == "COVERAGE_TOO_LOW" and "spec_kv covers 0.500" in answer.decision.detail
        # Not spec_kv_pc, which reads no more; spec_kv adapts too, up to as many.
        assert len(stack.draft.calls) == 2


async def test_kv_whose_upper_bound_covers_too_little_gives_way(stack):
    for least, route in ((0.5, "SPEC_KV"), (0.51, "FULL")):
        budget = auto(0.2, max_tokens=100) | {"min_coverage": least}
        answer = await stack.ask(LONG, route=KV, budget=budget)
        assert answer.route == route
    assert "spec_kv covers 0.500, min_coverage is 0.51" in answer.decision.detail


async def test_too_little_coverage_of_a_named_route_ends_in_full(open_stack):
    stack = await open_stack()
    answer = await stack.ask(LONG, route=PC, budget=auto(0.9, max_tokens=100) | {"min_coverage": 0.9})
    assert (answer.route, answer.reason, answer.decision.kept_tokens) == ("FULL", "COVERAGE_TOO_LOW", 200)


def too_small(reply, request):
    mask = bytearray(reply.token_mask.kept)
    mask[0] = 0
    reply.token_mask.kept = bytes(mask)


def too_little_kv(reply, request):
    reply.kv_capacity = 3


def over_the_most(reply, request):
    reply.kv_capacity = 101


def not_asked_for(reply, request):
    reply.kv_capacity = 20


@pytest.mark.parametrize(
    ("route", "spoil", "budget"),
    [
        (PC, too_small, auto(0.25, min_tokens=50, max_tokens=100)),
        (PC, not_asked_for, auto(0.25, max_tokens=100)),
        (KV, too_little_kv, auto(0.25, max_tokens=101)),
        (KV, over_the_most, auto(0.25, max_tokens=101)),
        (KV, not_asked_for, {"max_kv_tokens": 50}),
    ],
)
async def test_an_invalid_draft_answer_falls_back_to_full(stack, route, spoil, budget):
    stack.draft.spoil = spoil
    answer = await stack.ask(LONG, route=route, budget=budget)
    assert (answer.route, answer.reason, answer.decision.kept_tokens) == ("FULL", "MASK_REJECTED", 200)


async def test_without_kv_capacity_from_the_draft_the_maximum_is_used(stack):
    def old(reply, request):
        reply.ClearField("kv_capacity")

    stack.draft.spoil = old
    answer = await stack.ask(LONG, route=KV, budget=auto(0.25, max_tokens=101))
    assert answer.decision.kv_tokens == answer.usage.kv_tokens == 101
    assert "the draft did not report how many KV tokens reach coverage 0.25" in answer.decision.detail


async def test_explain_comes_to_the_same(stack):
    for route, kept, told in ((PC, 35, "35 tokens reach"), (KV, 140, "34 KV tokens reach")):
        asked = orchestrator_pb2.ExplainRequest(
            prompt=wire_prompt(LONG[:140]), route=route, budget=orchestrator_pb2.Budget(**auto(0.25, max_tokens=101))
        )
        decision = (await stack.stub.Explain(asked)).decision
        assert (decision.kept_tokens, decision.kv_tokens) == (kept, 35) and told in decision.detail


async def test_the_client_asks_and_is_told(stack):
    client = AsyncClient(stack.address)
    answer = await client.generate(
        token_ids=LONG, route="spec_kv", auto_coverage=0.25, auto_min_tokens=20, auto_max_tokens=101, max_new_tokens=2
    )
    assert (answer.decision.kv_capacity, answer.decision.kv_tokens) == (49, 50)
    await client.aclose()


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        (auto(0.0), "coverage"),
        (auto(1.5), "coverage"),
        (auto(0.5, min_tokens=9, max_tokens=8), "min_tokens"),
    ],
)
async def test_bounds_that_cannot_be(stack, budget, field):
    refusal = await refusal_of(stack.ask(LONG, budget=budget))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert refusal.field == f"budget.auto_capacity.{field}"


async def test_the_defaults_bound_what_has_no_bounds(stack):
    answer = await stack.ask(LONG, route=KV_PC, budget=auto(1.0))
    assert (answer.decision.kept_tokens, answer.decision.kv_tokens) == (CASCADE, KV_CAPACITY + 1)
