"""Facts in, route and reason out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong, RouteUnsupported
from presift.core.plan import Route
from presift.core.policies import SpecPc
from presift.orchestrator.domain.request import Budget, KvOptions
from presift.orchestrator.routing.choice import Defaults, Facts, Reason, check_fits
from presift.orchestrator.routing.router import choose as choose_route

BOTH = frozenset({Route.FULL, Route.SPEC_PC})
DEFAULTS = Defaults(SpecPc(100, window=10), compress_above_tokens=400)
FACTS = Facts(prompt_tokens=1000, must_keep=10, must_keep_kv=10, max_new_tokens=50, context_tokens=2000, supported=BOTH)


def choose(wanted, budget, facts, defaults):
    return choose_route(wanted, budget, KvOptions(), facts, defaults)


def test_over_budget_is_compressed():
    choice = choose(None, Budget(), FACTS, DEFAULTS)
    assert (choice.route, choice.reason) == (Route.SPEC_PC, Reason.OVER_BUDGET)
    assert choice.policy == SpecPc(100, window=10)
    assert "1000" in choice.detail and "100" in choice.detail


@pytest.mark.parametrize(
    ("prompt_tokens", "budget", "reason"),
    [
        (400, Budget(), Reason.BELOW_THRESHOLD),
        (401, Budget(), Reason.OVER_BUDGET),
        (401, Budget(compress_above_tokens=401), Reason.BELOW_THRESHOLD),
        (101, Budget(compress_above_tokens=0), Reason.OVER_BUDGET),
        (100, Budget(compress_above_tokens=0), Reason.WITHIN_BUDGET),
        (500, Budget(max_prompt_tokens=500), Reason.WITHIN_BUDGET),
        (500, Budget(max_prompt_tokens=500, max_kv_tokens=499), Reason.OVER_BUDGET),
    ],
)
def test_reasons(prompt_tokens, budget, reason):
    assert choose(None, budget, replace(FACTS, prompt_tokens=prompt_tokens), DEFAULTS).reason is reason


def test_named_routes():
    assert choose(Route.FULL, Budget(), FACTS, DEFAULTS).reason is Reason.REQUESTED
    named = choose(Route.SPEC_PC, Budget(max_prompt_tokens=70), FACTS, DEFAULTS)
    assert (named.reason, named.policy.capacity) == (Reason.REQUESTED, 70)


def test_a_threshold_does_not_hold_where_the_prompt_cannot_fit():
    choice = choose(None, Budget(compress_above_tokens=5000), replace(FACTS, prompt_tokens=3000), DEFAULTS)
    assert choice.route is Route.SPEC_PC


def test_the_answer_has_room():
    choice = choose(None, Budget(max_prompt_tokens=5000), replace(FACTS, prompt_tokens=3000), DEFAULTS)
    assert choice.policy.capacity == 2000 - 50


@pytest.mark.parametrize("must_keep", [100, 101])
def test_protected_over_budget(must_keep):
    choice = choose(None, Budget(), replace(FACTS, must_keep=must_keep), DEFAULTS)
    assert choice.reason is (Reason.OVER_BUDGET if must_keep == 100 else Reason.PROTECTED_OVER_BUDGET)


REFUSED = {
    "unsupported": (Route.SPEC_KV, Budget(), {}, RouteUnsupported),
    "compressing unsupported": (Route.SPEC_PC, Budget(), {"supported": frozenset({Route.FULL})}, RouteUnsupported),
    "no room at all": (None, Budget(), {"max_new_tokens": 2000}, PromptTooLong),
    "full too long": (Route.FULL, Budget(), {"prompt_tokens": 1951}, PromptTooLong),
    "protected too long": (None, Budget(), {"prompt_tokens": 3000, "must_keep": 200}, PromptTooLong),
    "below the window": (None, Budget(max_prompt_tokens=9), {}, InvalidRequest),
    "room below the window": (None, Budget(), {"max_new_tokens": 1995}, PromptTooLong),
    "strict and protected": (None, Budget(max_prompt_tokens=50, strict=True), {"must_keep": 60}, BudgetExceeded),
    "strict and full": (Route.FULL, Budget(max_prompt_tokens=50, strict=True), {}, BudgetExceeded),
    "strict and short": (None, Budget(max_kv_tokens=50, strict=True), {"prompt_tokens": 300}, BudgetExceeded),
    "strict, no compressing route": (
        None,
        Budget(max_kv_tokens=50, strict=True),
        {"supported": frozenset({Route.FULL})},
        BudgetExceeded,
    ),
}


@pytest.mark.parametrize(("wanted", "budget", "changes", "error"), REFUSED.values(), ids=REFUSED)
def test_refusals(wanted, budget, changes, error):
    with pytest.raises(error) as refusal:
        choose(wanted, budget, replace(FACTS, **changes), DEFAULTS)
    assert type(refusal.value) is error
    assert refusal.value.details.keys() == {"field", "value", "limit"} and all(refusal.value.details.values())


@given(
    wanted=st.none() | st.sampled_from(Route),
    budget=st.builds(
        Budget,
        max_prompt_tokens=st.none() | st.integers(1, 300),
        max_kv_tokens=st.none() | st.integers(1, 300),
        strict=st.booleans(),
        compress_above_tokens=st.none() | st.integers(0, 300),
    ),
    facts=st.integers(1, 300).flatmap(
        lambda n: st.builds(
            Facts,
            prompt_tokens=st.just(n),
            must_keep=st.integers(min(n, 10), n),
            must_keep_kv=st.just(0),
            max_new_tokens=st.integers(1, 300),
            context_tokens=st.integers(1, 400),
            supported=st.sampled_from([BOTH, frozenset({Route.FULL})]),
        )
    ),
    capacity=st.integers(10, 200),
    threshold=st.integers(0, 200),
)
def test_whatever_is_chosen_holds(wanted, budget, facts, capacity, threshold):
    defaults = Defaults(SpecPc(capacity, window=10), threshold)
    try:
        choice = choose(wanted, budget, facts, defaults)
    except PresiftError as error:
        if wanted in (None, Route.FULL) and not budget.strict:
            assert has_ground(error, budget, facts)
        return
    assert choice.route in facts.supported
    if wanted is Route.FULL:
        assert choice.route is Route.FULL
    if choice.route is Route.FULL:
        assert choice.policy is None and facts.prompt_tokens <= facts.room
        if budget.strict and budget.capacity is not None:
            assert facts.prompt_tokens <= budget.capacity
        return
    kept = choice.policy.capacity
    assert choice.policy.window == 10 <= kept < facts.prompt_tokens
    assert facts.must_keep <= kept <= facts.room
    assert budget.capacity is None or kept <= budget.capacity
    above = threshold if budget.compress_above_tokens is None else budget.compress_above_tokens
    assert facts.prompt_tokens > above or facts.prompt_tokens > facts.room


def has_ground(error, budget, facts):
    """Whether a refusal of a route that is served, without `strict`, has one of its two grounds."""
    too_long = isinstance(error, PromptTooLong) and (facts.prompt_tokens > facts.room or facts.room < 1)
    below_window = type(error) is InvalidRequest and budget.capacity is not None and budget.capacity < 10
    return too_long or below_window


def test_check_fits_says_how_much_is_free():
    with pytest.raises(PromptTooLong, match=r"1951 tokens.*<= 1950"):
        check_fits(replace(FACTS, prompt_tokens=1951))
    check_fits(replace(FACTS, prompt_tokens=1950))
