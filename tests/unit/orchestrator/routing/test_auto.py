"""AUTO: the least lossy route that meets the budget, or the one that is cheapest anyway."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong
from presift.core.policies import KvSelection
from presift.orchestrator.domain.request import AutoCapacity, Budget
from presift.orchestrator.routing.auto import less_lossy
from presift.orchestrator.routing.candidates import candidates
from presift.orchestrator.routing.choice import ROUTE_ORDER, Reason, RouteChoice
from presift.orchestrator.routing.cost_model import QueuedWork, RunningAnswer
from presift.orchestrator.routing.forecast import forecast, full_forecast
from presift.orchestrator.routing.router import choose

from ....builders import COSTS, DEFAULTS, FULL, INPUTS, KV, KV_PC, PC, routing_inputs


def auto(base=INPUTS, **changes):
    return choose(routing_inputs(base, **changes))


def test_without_a_budget_the_default_capacity_is_the_limit():
    choice = auto()
    assert (choice.route, choice.reason, choice.policy.capacity) == (PC, Reason.OVER_BUDGET, 100)
    assert "1000" in choice.detail and "100" in choice.detail
    assert choice.forecast == forecast(choice, INPUTS) and choice.forecast.ttft_ms == 2000


def test_the_prediction_for_full_is_independent_of_the_choice():
    assert full_forecast(INPUTS) == auto(max_kv_tokens=1000).forecast and full_forecast(INPUTS).read_tokens == 1000
    assert full_forecast(routing_inputs(cached_tokens=900)).ttft_ms < full_forecast(INPUTS).ttft_ms


@pytest.mark.parametrize(
    ("budget", "route", "reads", "holds"),
    [
        ({"max_kv_tokens": 1000}, FULL, 1000, 1000),
        ({"max_kv_tokens": 500}, KV, 1000, 500),
        ({"max_kv_tokens": 80, "max_prompt_tokens": 300}, KV_PC, 300, 80),
        ({"max_kv_tokens": 80, "max_ttft_ms": 5000}, KV_PC, 200, 80),
        ({"max_prompt_tokens": 300}, PC, 300, 300),
        ({"max_prompt_tokens": 60, "max_kv_tokens": 80}, PC, 60, 60),
        ({"max_kv_tokens": 150, "max_ttft_ms": 2777}, PC, 150, 150),
        ({"max_kv_tokens": 150, "max_ttft_ms": 2776}, PC, 128, 128),
        ({"max_ttft_ms": 11_111}, FULL, 1000, 1000),
        ({"max_ttft_ms": 11_110}, KV_PC, 200, 51),
        ({"max_ttft_ms": 2_222}, PC, 100, 100),
        ({"max_ttft_ms": 1_888}, PC, 64, 64),
    ],
)
def test_the_least_lossy_route_within_the_budget(budget, route, reads, holds):
    choice = auto(**budget)
    found = choice.forecast
    assert (choice.route, found.read_tokens, found.kv_tokens) == (route, reads, holds)
    assert choice.reason is (Reason.WITHIN_BUDGET if route is FULL else Reason.OVER_BUDGET)


def test_a_route_that_is_not_served_is_skipped_and_named():
    choice = auto(supported=frozenset({FULL, PC}), max_kv_tokens=500)
    assert choice.route is PC and "full needs 1000 KV tokens of 500 (max_kv_tokens)" in choice.detail


def test_the_order_is_a_setting():
    defaults = replace(DEFAULTS, route_order=(FULL, PC, KV))
    assert auto(defaults=defaults, max_kv_tokens=500).route is PC
    assert auto(defaults=replace(DEFAULTS, route_order=(FULL, KV)), max_kv_tokens=500).route is KV
    for order in ((FULL, PC, PC), (PC, KV), ()):
        with pytest.raises(InvalidRequest, match="route_order"):
            replace(DEFAULTS, route_order=order)


def test_no_kv_is_dropped_without_need():
    """spec_kv first in the order drops KV that no limit asks for: full reads the same and is no later."""
    assert auto(defaults=replace(DEFAULTS, route_order=(KV, FULL, PC)), max_ttft_ms=60_000).route is FULL


def test_a_warm_prefix_is_read_full_forecast():
    choice = auto(cached_tokens=960)
    assert (choice.route, choice.reason, choice.policy) == (FULL, Reason.CHEAPEST, None)
    assert "960 of 1000" in choice.detail and choice.forecast.ttft_ms == 400
    assert auto(cached_tokens=256).route is PC


def test_the_cheapest_route_breaks_no_limit():
    warm = routing_inputs(cached_tokens=960)
    assert auto(warm, max_prompt_tokens=500).route is PC
    assert auto(warm, max_kv_tokens=500).route is KV
    assert auto(warm, max_ttft_ms=500).route is FULL


def test_a_compressed_prompt_in_the_cache_is_cheaper_than_half_a_warm_prefix():
    policy = auto().policy
    state = {"cached_tokens": 880, "compressed": ((policy, 0),)}
    assert auto(cached_tokens=880).route is FULL
    assert auto(**state).route is PC


def test_full_is_not_called_cheapest_by_a_guess():
    """Where the draft was never measured, its time is not held against it."""
    guessed = replace(COSTS, draft=replace(COSTS.draft, token_ms=1e6, observations=0))
    assert auto(costs=guessed).route is PC
    measured = replace(guessed, draft=replace(guessed.draft, observations=1))
    assert auto(costs=measured).reason is Reason.CHEAPEST


def test_queued_work_counts():
    assert auto(max_ttft_ms=11_111).route is FULL
    assert auto(queued=QueuedWork(target_ms=100), max_ttft_ms=11_111).route is KV_PC


def test_nothing_fits():
    choice = auto(max_ttft_ms=500)
    assert choice.reason is Reason.BUDGET_NOT_MET and choice.route is PC
    assert "2000 ms" in choice.detail and "500" in choice.detail
    with pytest.raises(BudgetExceeded, match="strict budget not met") as refusal:
        auto(max_ttft_ms=500, strict=True)
    assert refusal.value.field == "budget.max_ttft_ms" and refusal.value.limit == "<= 450"


def test_the_nearest_route_breaks_the_limits_least():
    """Only spec_kv keeps max_kv_tokens; both routes read too much."""
    two = routing_inputs(supported=frozenset({FULL, KV}))
    choice = auto(two, max_prompt_tokens=500, max_kv_tokens=100)
    assert (choice.route, choice.reason) == (KV, Reason.BUDGET_NOT_MET)
    assert auto(two, max_prompt_tokens=500).route is FULL


def test_a_prompt_over_the_context_is_compressed_whatever_the_order_says():
    longer = routing_inputs(prompt_tokens=5000)
    assert auto(longer).route is PC
    assert auto(longer, max_kv_tokens=80).route is KV_PC
    assert auto(longer, supported=frozenset({FULL, KV, KV_PC})).route is KV_PC
    with pytest.raises(PromptTooLong):
        auto(longer, supported=frozenset({FULL, KV}))


def test_a_named_route_that_is_too_slow_says_so():
    choice = auto(wanted=PC, max_ttft_ms=500)
    assert choice.route is PC and "2000 ms, over max_ttft_ms 500" in choice.detail
    with pytest.raises(BudgetExceeded):
        auto(wanted=PC, max_ttft_ms=500, strict=True)


def covering(**changes):
    """Inputs of a caller who requires a coverage of 0.9."""
    return routing_inputs(min_coverage=0.9, **changes)


@pytest.mark.parametrize(
    ("than", "budget", "then"),
    [
        (PC, {}, KV_PC),
        (KV_PC, {}, KV),
        (KV, {}, FULL),
        (PC, {"max_kv_tokens": 80, "max_prompt_tokens": 300}, KV_PC),
        (PC, {"max_kv_tokens": 80, "max_ttft_ms": 3000}, KV_PC),
        (PC, {"max_kv_tokens": 80, "max_ttft_ms": 1900}, FULL),  # nothing else within the limits
        (PC, {"max_prompt_tokens": 300}, FULL),  # spec_kv_pc would read by the same mask
    ],
)
def test_too_little_coverage_takes_the_next_less_lossy_route(than, budget, then):
    inputs = covering(**budget)
    choice = less_lossy(choose(replace(inputs, wanted=than)), 0.5, inputs)
    assert (choice.route, choice.reason) == (then, Reason.COVERAGE_TOO_LOW) and "0.500" in choice.detail


def test_too_little_coverage_without_another_route():
    than = auto(wanted=PC, max_prompt_tokens=300)
    with pytest.raises(BudgetExceeded) as refusal:
        less_lossy(than, 0.5, covering(max_prompt_tokens=300, strict=True))
    assert refusal.value.field == "budget.min_coverage"
    with pytest.raises(PromptTooLong):
        less_lossy(than, 0.5, covering(prompt_tokens=5000, max_prompt_tokens=300))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "full needs 1000 prompt tokens of 100 (the default capacity)"),
        ({"auto_capacity": AutoCapacity(0.9, max_tokens=300)}, "of 300 (auto_capacity.max_tokens)"),
        ({"max_prompt_tokens": 300}, "full needs 1000 prompt tokens of 300 (max_prompt_tokens)"),
        ({"max_kv_tokens": 1000}, "1000 prompt tokens fit 1000 (max_kv_tokens)"),
        ({"max_ttft_ms": 9_000_000}, "predicted at 10000 ms, within max_ttft_ms 9000000"),
        ({"max_ttft_ms": 500}, "2000 ms of 450 (nine tenths of max_ttft_ms 500)"),
        ({"max_ttft_ms": 5}, "2000 ms of 5 (max_ttft_ms)"),
        ({"max_ttft_ms": 500}, "spec_pc is the nearest; it needs 2000 ms"),
        ({"draft_context_tokens": 900}, "the draft reads at most 900 tokens, not 1000 prompt tokens"),
    ],
)
def test_the_reason_in_words(changes, text):
    assert text in auto(**changes).detail


def test_a_limit_on_time_alone_is_explained_without_tokens():
    assert auto(max_ttft_ms=9_000_000).detail == "predicted at 10000 ms, within max_ttft_ms 9000000"


def test_an_empty_cache_is_not_given_as_the_reason():
    slow = replace(COSTS, draft=replace(COSTS.draft, call_ms=1e6))
    choice = auto(costs=slow)
    assert choice.reason is Reason.CHEAPEST and "cached" not in choice.detail


def test_a_prompt_that_no_draft_reads_and_no_context_holds_says_both():
    with pytest.raises(PromptTooLong) as refusal:
        auto(prompt_tokens=3000, draft_context_tokens=900)
    assert "it cannot be compressed: the draft reads at most 900 tokens" in refusal.value.message
    assert refusal.value.sizes.prompt_tokens == 3000


def test_a_lookahead_counts_as_what_the_draft_reads():
    """spec_kv has 5 tokens of it, spec_pc none."""
    for context, possible in ((1005, {FULL, KV, KV_PC, PC}), (1004, {FULL, PC}), (999, {FULL})):
        table = candidates(routing_inputs(draft_context_tokens=context))
        assert {each.route for each in table if each.choice is not None} == possible


LIMITS = {
    "max_prompt_tokens": st.none() | st.integers(1, 1200),
    "max_kv_tokens": st.none() | st.integers(1, 1200),
    "max_ttft_ms": st.none() | st.integers(1, 15_000),
}
ANY_INPUTS = st.builds(
    lambda tokens, must_keep, context, cached, routes, prefills, call, free, answers: routing_inputs(
        prompt_tokens=tokens,
        must_keep=max(min(tokens, 10), min(must_keep, tokens)),
        must_keep_kv=max(min(tokens - 1, 8), min(must_keep, tokens - 1)),
        context_tokens=context,
        supported=frozenset({FULL, *routes}),
        cached_tokens=min(cached, tokens),
        prefills=prefills,
        free_kv_tokens=free,
        answers=tuple(RunningAnswer(remaining_ms, kv_tokens) for remaining_ms, kv_tokens in answers),
        costs=replace(COSTS, draft=replace(COSTS.draft, call_ms=call)),
    ),
    tokens=st.integers(2, 1500),
    must_keep=st.integers(0, 300),
    context=st.integers(60, 2000),
    cached=st.just(0) | st.integers(0, 1500),
    # A target that serves spec_kv_pc serves spec_pc: to it that is a short prompt.
    routes=st.sampled_from([(), (PC,), (KV,), (PC, KV), (PC, KV, KV_PC)]),
    prefills=st.booleans(),
    call=st.sampled_from([0.0, 500.0]),
    free=st.none() | st.integers(0, 2000),
    answers=st.lists(st.tuples(st.floats(0, 5000), st.integers(1, 800)), max_size=4),
)


def outcome(inputs):
    try:
        return choose(inputs)
    except PresiftError as error:
        return error


def over(choice, budget):
    found = choice.forecast
    costs = {"max_prompt_tokens": found.read_tokens, "max_kv_tokens": found.kv_tokens, "max_ttft_ms": found.ttft_ms}
    limits = {name: getattr(budget, name) for name in costs}
    return {name for name, limit in limits.items() if limit is not None and costs[name] > limit + 0.5}


@given(budget=st.builds(Budget, **LIMITS, strict=st.booleans(), compress_above_tokens=st.just(0)), inputs=ANY_INPUTS)
def test_never_over_a_limit_that_could_be_kept_and_deterministic(budget, inputs):
    inputs = replace(inputs, budget=budget)
    choice, again = outcome(inputs), outcome(inputs)
    assert choice == again or (isinstance(choice, PresiftError) and choice.message == again.message)
    table = candidates(routing_inputs(inputs, strict=False))
    can_be_kept = [each.route for each in table if each.choice is not None and not each.over]
    if isinstance(choice, PresiftError):
        assert not can_be_kept
        return
    if choice.route is FULL:
        assert inputs.prompt_tokens + inputs.least_new_tokens <= inputs.context_tokens
    assert choice.route in inputs.supported
    if over(choice, budget):
        assert not budget.strict and not (budget.has_limits and can_be_kept)
        assert choice.reason in (Reason.BUDGET_NOT_MET, Reason.PROTECTED_OVER_BUDGET, Reason.WITHIN_BUDGET)


@given(
    limits=st.fixed_dictionaries(LIMITS),
    more=st.fixed_dictionaries(
        {name: st.integers(0, 800) for name in LIMITS},
    ),
    inputs=ANY_INPUTS,
)
def test_monotone_in_the_budget(limits, more, inputs):
    """A budget that was met still is when there is more of anything, by a route that is no lossier or keeps no less.

    Under max_ttft_ms capacities are powers of two below the limit, so that less than half may be lost to rounding.
    """
    looser = {name: None if limit is None else limit + more[name] for name, limit in limits.items()}
    if not Budget(**limits).has_limits:
        return
    before, after = (
        outcome(routing_inputs(inputs, **each, strict=True, compress_above_tokens=0)) for each in (limits, looser)
    )
    if isinstance(before, PresiftError):
        return
    assert not isinstance(after, PresiftError), after
    rank, share = ROUTE_ORDER.index, 1 if limits["max_ttft_ms"] is None else 2
    keeps_no_less = (
        share * after.forecast.read_tokens >= before.forecast.read_tokens
        and share * after.forecast.kv_tokens >= before.forecast.kv_tokens
    )
    assert rank(after.route) <= rank(before.route) or keeps_no_less


@given(inputs=ANY_INPUTS, least=st.floats(0.1, 1.0))
def test_going_up_the_order_ends(inputs, least):
    inputs = routing_inputs(inputs, min_coverage=least)
    choice, routes = RouteChoice(PC, Reason.OVER_BUDGET, ""), []
    while choice.route is not FULL:
        try:
            choice = less_lossy(choice, 0.0, inputs)
        except PromptTooLong:
            return
        routes.append(choice.route)
    assert len(routes) == len(set(routes)) <= 3


def test_a_mask_of_the_draft_is_an_option_of_auto_too():
    choice = auto(selection=KvSelection.DRAFT_MASK, max_kv_tokens=500)
    assert choice.route is KV and choice.policy.selection is KvSelection.DRAFT_MASK


def test_a_prompt_of_one_token_has_no_smaller_capacity():
    one = routing_inputs(prompt_tokens=1, must_keep=1, must_keep_kv=0)
    assert [each.route for each in candidates(routing_inputs(one, max_ttft_ms=1))] == list(ROUTE_ORDER)
    assert auto(one, max_ttft_ms=1, compress_above_tokens=0).route is FULL


def test_served_routes_that_are_not_possible_are_explained():
    low = auto(auto_capacity=AutoCapacity(0.9, max_tokens=5))
    assert (low.route, low.reason) == (FULL, Reason.WITHIN_BUDGET)
    assert low.detail == "spec_pc needs budget >= 10 tokens"
    pool = auto(supported=frozenset({FULL, KV}), kv_pool_tokens=100, max_kv_tokens=60)
    assert (pool.route, pool.reason) == (FULL, Reason.KV_POOL_TOO_SMALL) and "pool has 100" in pool.detail
    assert auto(supported=frozenset({FULL})).detail == "no compressing route is served here"


def test_a_forecast_includes_the_wait_for_kv_slots():
    """The whole prompt and 50 tokens of answer do not fit into 800 slots, a compressed prompt does."""
    busy = routing_inputs(free_kv_tokens=800, answers=(RunningAnswer(4000.0, 600),))
    assert forecast(auto(max_kv_tokens=1000), busy).ttft_ms == 14_000
    assert auto(max_ttft_ms=11_111).route is FULL and auto(busy, max_ttft_ms=11_111).route is KV_PC


@given(
    limits=st.fixed_dictionaries(LIMITS),
    inputs=ANY_INPUTS,
    busier=st.tuples(st.floats(0, 5000), st.integers(0, 500)),
    route=st.sampled_from(ROUTE_ORDER),
)
def test_more_load_is_never_faster(limits, inputs, busier, route):
    wait_ms, taken = busier
    idle = routing_inputs(inputs, **{**limits, "max_ttft_ms": None}, compress_above_tokens=0)
    free, queued = idle.state.free_kv_tokens, idle.state.queued
    loaded = routing_inputs(
        idle,
        queued=replace(queued, target_ms=queued.target_ms + wait_ms),
        free_kv_tokens=None if free is None else max(0, free - taken),
    )
    calm, busy = ({each.route: each for each in candidates(state)} for state in (idle, loaded))
    if calm[route].forecast is None:
        assert busy[route].forecast is None
    else:
        assert busy[route].forecast.ttft_ms >= calm[route].forecast.ttft_ms - 1e-6
