"""AUTO: the least lossy route that meets the budget, or the one that is cheapest anyway."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong
from presift.core.plan import Route
from presift.core.policies import KvSelection, SpecKv, SpecPc
from presift.orchestrator.domain.request import AutoCapacity, Budget, KvOptions
from presift.orchestrator.routing.auto import less_lossy
from presift.orchestrator.routing.candidates import Question, candidates
from presift.orchestrator.routing.choice import ROUTE_ORDER, Defaults, Facts, Reason, RouteChoice
from presift.orchestrator.routing.cost_model import CostCurve, QueuedWork, RunningAnswer, StageCosts, SystemState
from presift.orchestrator.routing.forecast import forecast, in_full
from presift.orchestrator.routing.router import choose

FULL, PC, KV, KV_PC = Route.FULL, Route.SPEC_PC, Route.SPEC_KV, Route.SPEC_KV_PC
DEFAULTS = Defaults(SpecPc(100, window=10), 400, spec_kv=SpecKv(50, window=8, lookahead_tokens=5), cascade_capacity=200)
# 1 ms a token for the draft, 10 for the target, nothing else.
SPEEDS = StageCosts(
    CostCurve(0.0, 1.0, 0.0, observations=1),
    CostCurve(0.0, 10.0, 0.0, observations=1),
    CostCurve(0.0, 0.0, 0.0),
    contention=0.0,
)
FACTS = Facts(
    prompt_tokens=1000,
    must_keep=10,
    must_keep_kv=8,
    max_new_tokens=50,
    context_tokens=2000,
    supported=frozenset(Route),
    outlook=SystemState(SPEEDS),
)


def auto(facts=FACTS, defaults=DEFAULTS, options=None, **budget):
    return choose(None, Budget(**budget), options or KvOptions(), facts, defaults)


def with_outlook(**changes):
    return replace(FACTS, outlook=replace(FACTS.outlook, **changes))


def test_without_a_budget_the_default_capacity_is_the_limit():
    choice = auto()
    assert (choice.route, choice.reason, choice.policy.capacity) == (PC, Reason.OVER_BUDGET, 100)
    assert "1000" in choice.detail and "100" in choice.detail
    assert choice.forecast == forecast(choice, FACTS) and choice.forecast.ttft_ms == 2000


def test_what_full_would_take_is_the_same_whatever_is_chosen():
    assert in_full(FACTS) == auto(max_kv_tokens=1000).forecast and in_full(FACTS).read_tokens == 1000
    assert in_full(with_outlook(cached_tokens=900)).ttft_ms < in_full(FACTS).ttft_ms


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
def test_the_least_lossy_that_meets_the_budget(budget, route, reads, holds):
    choice = auto(**budget)
    found = choice.forecast
    assert (choice.route, found.read_tokens, found.kv_tokens) == (route, reads, holds)
    assert choice.reason is (Reason.WITHIN_BUDGET if route is FULL else Reason.OVER_BUDGET)


def test_what_is_not_served_is_passed_over_and_told():
    choice = auto(replace(FACTS, supported=frozenset({FULL, PC})), max_kv_tokens=500)
    assert choice.route is PC and "spec_kv is not served here" in choice.detail


def test_the_order_is_a_setting():
    defaults = replace(DEFAULTS, route_order=(FULL, PC, KV))
    assert auto(defaults=defaults, max_kv_tokens=500).route is PC
    assert auto(defaults=replace(DEFAULTS, route_order=(FULL, KV)), max_kv_tokens=500).route is KV
    for order in ((FULL, PC, PC), (PC, KV), ()):
        with pytest.raises(InvalidRequest, match="route_order"):
            replace(DEFAULTS, route_order=order)


def test_nothing_is_dropped_for_nothing():
    """spec_kv first in the order drops KV that no limit asks for: full reads the same and is no later."""
    assert auto(defaults=replace(DEFAULTS, route_order=(KV, FULL, PC)), max_ttft_ms=60_000).route is FULL


def test_a_warm_prefix_is_read_in_full():
    choice = auto(with_outlook(cached_tokens=960))
    assert (choice.route, choice.reason, choice.policy) == (FULL, Reason.CHEAPEST, None)
    assert "960 of 1000" in choice.detail and choice.forecast.ttft_ms == 400
    assert auto(with_outlook(cached_tokens=256)).route is PC


def test_the_cheapest_breaks_no_limit_of_the_caller():
    warm = with_outlook(cached_tokens=960)
    assert auto(warm, max_prompt_tokens=500).route is PC
    assert auto(warm, max_kv_tokens=500).route is KV
    assert auto(warm, max_ttft_ms=500).route is FULL


def test_a_compressed_prompt_in_the_cache_is_cheaper_than_half_a_warm_prefix():
    policy = auto().policy.canonical()
    outlook = {"cached_tokens": 880, "compressed": ((policy, 0),)}
    assert auto(with_outlook(cached_tokens=880)).route is FULL
    assert auto(with_outlook(**outlook)).route is PC


def test_full_is_not_called_cheapest_by_a_guess():
    """Where the draft was never measured, its time is not held against it."""
    guessed = replace(SPEEDS, draft=replace(SPEEDS.draft, token_ms=1e6, observations=0))
    assert auto(with_outlook(speeds=guessed)).route is PC
    measured = replace(guessed, draft=replace(guessed.draft, observations=1))
    assert auto(with_outlook(speeds=measured)).reason is Reason.CHEAPEST


def test_a_queue_counts():
    assert auto(max_ttft_ms=11_111).route is FULL
    assert auto(with_outlook(load=QueuedWork(target_ms=100)), max_ttft_ms=11_111).route is KV_PC


def test_nothing_fits():
    choice = auto(max_ttft_ms=500)
    assert choice.reason is Reason.BUDGET_NOT_MET and choice.route is PC
    assert "2000 ms" in choice.detail and "500" in choice.detail
    with pytest.raises(BudgetExceeded, match="strict budget not met") as refusal:
        auto(max_ttft_ms=500, strict=True)
    assert refusal.value.field == "budget.max_ttft_ms" and refusal.value.limit == "<= 450"


def test_nearest_breaks_as_little_as_can_be():
    """Only spec_kv holds what is asked; both read too much."""
    facts = replace(FACTS, supported=frozenset({FULL, KV}))
    choice = auto(facts, max_prompt_tokens=500, max_kv_tokens=100)
    assert (choice.route, choice.reason) == (KV, Reason.BUDGET_NOT_MET)
    assert auto(facts, max_prompt_tokens=500).route is FULL


def test_a_prompt_over_the_context_is_compressed_whatever_the_order_says():
    longer = replace(FACTS, prompt_tokens=5000)
    assert auto(longer).route is PC
    assert auto(longer, max_kv_tokens=80).route is KV_PC
    assert auto(replace(longer, supported=frozenset({FULL, KV, KV_PC}))).route is KV_PC
    with pytest.raises(PromptTooLong):
        auto(replace(longer, supported=frozenset({FULL, KV})))


def test_a_named_route_that_is_late_says_so():
    choice = choose(PC, Budget(max_ttft_ms=500), KvOptions(), FACTS, DEFAULTS)
    assert choice.route is PC and "2000 ms, over max_ttft_ms 500" in choice.detail
    with pytest.raises(BudgetExceeded):
        choose(PC, Budget(max_ttft_ms=500, strict=True), KvOptions(), FACTS, DEFAULTS)


def question(facts=FACTS, defaults=DEFAULTS, **budget):
    return Question(Budget(min_coverage=0.9, **budget), KvOptions(), facts, defaults)


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
def test_too_little_coverage_goes_up_the_order(than, budget, then):
    asked = question(**budget)
    low = choose(than, asked.budget, asked.options, asked.facts, asked.defaults)
    choice = less_lossy(low, 0.5, asked)
    assert (choice.route, choice.reason) == (then, Reason.COVERAGE_TOO_LOW) and "0.500" in choice.detail


def test_too_little_coverage_where_nothing_else_is_allowed():
    than = choose(PC, Budget(max_prompt_tokens=300), KvOptions(), FACTS, DEFAULTS)
    with pytest.raises(BudgetExceeded) as refusal:
        less_lossy(than, 0.5, question(max_prompt_tokens=300, strict=True))
    assert refusal.value.field == "budget.min_coverage"
    with pytest.raises(PromptTooLong):
        less_lossy(than, 0.5, question(replace(FACTS, prompt_tokens=5000), max_prompt_tokens=300))


@pytest.mark.parametrize(
    ("facts", "budget", "told"),
    [
        (FACTS, {}, "full needs 1000 prompt tokens of 100 (the default capacity)"),
        (FACTS, {"auto_capacity": AutoCapacity(0.9, max_tokens=300)}, "of 300 (auto_capacity.max_tokens)"),
        (FACTS, {"max_prompt_tokens": 300}, "full needs 1000 prompt tokens of 300 (max_prompt_tokens)"),
        (FACTS, {"max_prompt_tokens": 300}, "spec_kv would be the same as spec_kv_pc within these limits"),
        (FACTS, {"max_kv_tokens": 1000}, "1000 prompt tokens fit 1000 (max_kv_tokens)"),
        (FACTS, {"max_ttft_ms": 9_000_000}, "predicted at 10000 ms, within max_ttft_ms 9000000"),
        (FACTS, {"max_ttft_ms": 500}, "2000 ms (predicted) of 450 (nine tenths of max_ttft_ms 500)"),
        (FACTS, {"max_ttft_ms": 5}, "2000 ms (predicted) of 5 (max_ttft_ms)"),
        (FACTS, {"max_ttft_ms": 500}, "spec_pc is the nearest, so spec_pc, reading 100"),
        (replace(FACTS, draft_context_tokens=900), {}, "the draft reads at most 900 tokens, not 1000 prompt tokens"),
    ],
)
def test_the_reason_in_words(facts, budget, told):
    assert told in auto(facts, **budget).detail


def test_the_whole_prompt_within_a_time_is_not_told_as_tokens():
    assert auto(max_ttft_ms=9_000_000).detail == "predicted at 10000 ms, within max_ttft_ms 9000000"


def test_nothing_cached_is_not_told_as_the_reason():
    slow = replace(SPEEDS, draft=replace(SPEEDS.draft, call_ms=1e6))
    choice = auto(with_outlook(speeds=slow))
    assert (
        choice.reason is Reason.CHEAPEST and choice.detail == "nothing is predicted to be sooner than the whole prompt"
    )


def test_an_answer_that_fills_the_context_is_told_with_positive_numbers():
    facts = replace(FACTS, max_new_tokens=40_000)
    with pytest.raises(PromptTooLong) as refusal:
        auto(facts)
    told = [each.why for each in candidates(Question(Budget(), KvOptions(), facts, DEFAULTS))]
    for message in (refusal.value.message, told[0]):
        assert "1000 prompt tokens and sampling.max_new_tokens 40000 do not fit the context of 2000 tokens" in message
    assert not any("-" in message for message in (refusal.value.limit, *told))


def test_a_lookahead_counts_as_what_the_draft_reads():
    """spec_kv has 5 tokens of it, spec_pc none."""
    for context, possible in ((1005, {FULL, KV, KV_PC, PC}), (1004, {FULL, PC}), (999, {FULL})):
        table = candidates(Question(Budget(), KvOptions(), replace(FACTS, draft_context_tokens=context), DEFAULTS))
        assert {each.route for each in table if each.choice is not None} == possible


LIMITS = {
    "max_prompt_tokens": st.none() | st.integers(1, 1200),
    "max_kv_tokens": st.none() | st.integers(1, 1200),
    "max_ttft_ms": st.none() | st.integers(1, 15_000),
}
ANY_FACTS = st.builds(
    lambda tokens, must_keep, context, cached, routes, beside, call, free, answers: replace(
        FACTS,
        prompt_tokens=tokens,
        must_keep=max(min(tokens, 10), min(must_keep, tokens)),
        must_keep_kv=max(min(tokens - 1, 8), min(must_keep, tokens - 1)),
        context_tokens=context,
        supported=frozenset({FULL, *routes}),
        outlook=replace(
            FACTS.outlook,
            cached_tokens=min(cached, tokens),
            reads_beside=beside,
            free_kv_tokens=free,
            answers=tuple(RunningAnswer(remaining_ms, kv_tokens) for remaining_ms, kv_tokens in answers),
            speeds=replace(SPEEDS, draft=replace(SPEEDS.draft, call_ms=call)),
        ),
    ),
    tokens=st.integers(2, 1500),
    must_keep=st.integers(0, 300),
    context=st.integers(60, 2000),
    cached=st.just(0) | st.integers(0, 1500),
    # A target that serves spec_kv_pc serves spec_pc: to it that is a short prompt.
    routes=st.sampled_from([(), (PC,), (KV,), (PC, KV), (PC, KV, KV_PC)]),
    beside=st.booleans(),
    call=st.sampled_from([0.0, 500.0]),
    free=st.none() | st.integers(0, 2000),
    answers=st.lists(st.tuples(st.floats(0, 5000), st.integers(1, 800)), max_size=4),
)


def outcome(budget, facts, defaults=DEFAULTS):
    try:
        return choose(None, budget, KvOptions(), facts, defaults)
    except PresiftError as error:
        return error


def over(choice, budget):
    found = choice.forecast
    costs = {"max_prompt_tokens": found.read_tokens, "max_kv_tokens": found.kv_tokens, "max_ttft_ms": found.ttft_ms}
    limits = {name: getattr(budget, name) for name in costs}
    return {name for name, limit in limits.items() if limit is not None and costs[name] > limit + 0.5}


@given(budget=st.builds(Budget, **LIMITS, strict=st.booleans(), compress_above_tokens=st.just(0)), facts=ANY_FACTS)
def test_never_over_a_limit_that_could_be_kept_and_deterministic(budget, facts):
    choice = outcome(budget, facts)
    again = outcome(budget, facts)
    assert choice == again or (isinstance(choice, PresiftError) and choice.message == again.message)
    table = candidates(Question(replace(budget, strict=False), KvOptions(), facts, DEFAULTS))
    can_be_kept = [each.route for each in table if each.choice is not None and not each.over]
    if isinstance(choice, PresiftError):
        assert not can_be_kept
        return
    if choice.route is FULL:
        assert facts.prompt_tokens <= facts.room
    assert choice.route in facts.supported
    if over(choice, budget):
        assert not budget.strict and not (budget.has_limits and can_be_kept)
        assert choice.reason in (Reason.BUDGET_NOT_MET, Reason.PROTECTED_OVER_BUDGET, Reason.WITHIN_BUDGET)


@given(
    limits=st.fixed_dictionaries(LIMITS),
    more=st.fixed_dictionaries(
        {name: st.integers(0, 800) for name in LIMITS},
    ),
    facts=ANY_FACTS,
)
def test_monotone_in_the_budget(limits, more, facts):
    """A budget that was met still is when there is more of anything, by a route that is no lossier or keeps no less.

    Under max_ttft_ms capacities are powers of two below the limit, so that less than half may be lost to rounding.
    """
    looser = {name: None if limit is None else limit + more[name] for name, limit in limits.items()}
    if not Budget(**limits).has_limits:
        return
    before, after = (outcome(Budget(**each, strict=True, compress_above_tokens=0), facts) for each in (limits, looser))
    if isinstance(before, PresiftError):
        return
    assert not isinstance(after, PresiftError), after
    rank, share = ROUTE_ORDER.index, 1 if limits["max_ttft_ms"] is None else 2
    keeps_no_less = (
        share * after.forecast.read_tokens >= before.forecast.read_tokens
        and share * after.forecast.kv_tokens >= before.forecast.kv_tokens
    )
    assert rank(after.route) <= rank(before.route) or keeps_no_less


@given(facts=ANY_FACTS, least=st.floats(0.1, 1.0))
def test_going_up_the_order_ends(facts, least):
    asked = Question(Budget(min_coverage=least), KvOptions(), facts, DEFAULTS)
    choice, routes = RouteChoice(PC, Reason.OVER_BUDGET, ""), []
    while choice.route is not FULL:
        try:
            choice = less_lossy(choice, 0.0, asked)
        except PromptTooLong:
            return
        routes.append(choice.route)
    assert len(routes) == len(set(routes)) <= 3


def test_a_mask_of_the_draft_is_an_option_of_auto_too():
    choice = auto(options=KvOptions(selection=KvSelection.DRAFT_MASK), max_kv_tokens=500)
    assert choice.route is KV and choice.policy.selection is KvSelection.DRAFT_MASK


def test_a_prompt_of_one_token_has_no_smaller_capacity():
    one = replace(FACTS, prompt_tokens=1, must_keep=1, must_keep_kv=0)
    assert [each.route for each in candidates(question(one, max_ttft_ms=1))] == list(ROUTE_ORDER)
    assert auto(one, max_ttft_ms=1, compress_above_tokens=0).route is FULL


def test_served_routes_that_cannot_be_are_told():
    low = auto(auto_capacity=AutoCapacity(0.9, max_tokens=5))
    assert (low.route, low.reason) == (FULL, Reason.WITHIN_BUDGET)
    assert "spec_kv cannot be: budget.auto_capacity.max_tokens is 5" in low.detail and "spec_pc cannot be" in low.detail
    pool = auto(replace(FACTS, supported=frozenset({FULL, KV}), kv_pool_tokens=100), max_kv_tokens=60)
    assert (pool.route, pool.reason) == (FULL, Reason.KV_POOL_TOO_SMALL) and "pool has 100" in pool.detail
    assert auto(replace(FACTS, supported=frozenset({FULL}))).detail == "no compressing route is served here"


def test_slots_that_others_hold_are_waited_for():
    """The whole prompt and 50 tokens of answer do not fit into 800 slots, what is compressed does."""
    busy = with_outlook(free_kv_tokens=800, answers=(RunningAnswer(4000.0, 600),))
    assert forecast(auto(max_kv_tokens=1000), busy).ttft_ms == 14_000
    assert auto(max_ttft_ms=11_111).route is FULL and auto(busy, max_ttft_ms=11_111).route is KV_PC


@given(
    limits=st.fixed_dictionaries(LIMITS),
    facts=ANY_FACTS,
    busier=st.tuples(st.floats(0, 5000), st.integers(0, 500)),
    route=st.sampled_from(ROUTE_ORDER),
)
def test_more_load_is_never_sooner(limits, facts, busier, route):
    wait_ms, taken = busier
    outlook = facts.outlook
    loaded = replace(
        outlook,
        load=replace(outlook.load, target_ms=outlook.load.target_ms + wait_ms),
        free_kv_tokens=None if outlook.free_kv_tokens is None else max(0, outlook.free_kv_tokens - taken),
    )
    budget = replace(Budget(**limits), compress_above_tokens=0)
    calm, busy = (
        {
            each.route: each
            for each in candidates(Question(replace(budget, max_ttft_ms=None), KvOptions(), state, DEFAULTS))
        }
        for state in (facts, replace(facts, outlook=loaded))
    )
    if calm[route].forecast is None:
        assert busy[route].forecast is None
    else:
        assert busy[route].forecast.ttft_ms >= calm[route].forecast.ttft_ms - 1e-6
