"""The route and the reason for given inputs."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong, RouteUnsupported
from presift.core.plan import Route
from presift.core.policies import SpecPc
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.routing.choice import Defaults, Reason
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.full_route import check_fits_shortest_answer
from presift.orchestrator.routing.router import choose as choose_route

from ....builders import routing_inputs

BOTH = frozenset({Route.FULL, Route.SPEC_PC})
DEFAULTS = Defaults(SpecPc(100, window=10), compress_above_tokens=400)
# With costs that were never observed no route is cheapest.
INPUTS = routing_inputs(must_keep_kv=10, supported=BOTH, defaults=DEFAULTS, state=SystemState())


def choose(**changes):
    return choose_route(routing_inputs(INPUTS, **changes))


def test_over_budget_is_compressed():
    choice = choose()
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
    assert choose(budget=budget, prompt_tokens=prompt_tokens).reason is reason


def test_named_routes():
    assert choose(wanted=Route.FULL).reason is Reason.REQUESTED
    named = choose(wanted=Route.SPEC_PC, max_prompt_tokens=70)
    assert (named.reason, named.policy.capacity) == (Reason.REQUESTED, 70)


def test_the_threshold_does_not_apply_if_the_prompt_does_not_fit_the_context():
    choice = choose(compress_above_tokens=5000, prompt_tokens=3000)
    assert choice.route is Route.SPEC_PC


def test_the_capacity_leaves_room_for_the_answer():
    choice = choose(max_prompt_tokens=5000, prompt_tokens=3000)
    assert choice.policy.capacity == 2000 - 50


@pytest.mark.parametrize("must_keep", [100, 101])
def test_protected_over_budget(must_keep):
    choice = choose(must_keep=must_keep)
    assert choice.reason is (Reason.ONLY_PROTECTED_KEPT if must_keep == 100 else Reason.PROTECTED_OVER_BUDGET)


@pytest.mark.parametrize("wanted", [None, Route.SPEC_PC])
def test_a_budget_that_keeps_no_other_token_has_a_reason_of_its_own(wanted):
    choice = choose(budget=Budget(max_prompt_tokens=60), wanted=wanted, must_keep=60)
    assert (choice.route, choice.reason) == (Route.SPEC_PC, Reason.ONLY_PROTECTED_KEPT)
    assert choice.detail.endswith("nothing but the 60 tokens that must be kept")
    assert (
        choose(budget=Budget(max_prompt_tokens=61), wanted=wanted, must_keep=60).reason
        is not Reason.ONLY_PROTECTED_KEPT
    )


REFUSED = {
    "unsupported": (Route.SPEC_KV, Budget(), {}, RouteUnsupported),
    "compressing unsupported": (Route.SPEC_PC, Budget(), {"supported": frozenset({Route.FULL})}, RouteUnsupported),
    "no room at all": (None, Budget(), {"reserved_tokens": 2000, "least_new_tokens": 2000}, PromptTooLong),
    "full too long": (Route.FULL, Budget(), {"prompt_tokens": 2000}, PromptTooLong),
    "protected too long": (None, Budget(), {"prompt_tokens": 3000, "must_keep": 200}, PromptTooLong),
    "below the window": (None, Budget(max_prompt_tokens=9), {}, InvalidRequest),
    "room below the window": (None, Budget(), {"reserved_tokens": 1995, "least_new_tokens": 1995}, PromptTooLong),
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
        choose(wanted=wanted, budget=budget, **changes)
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
    inputs=st.integers(1, 300).flatmap(
        lambda n: st.builds(
            partial(replace, INPUTS),
            prompt_tokens=st.just(n),
            must_keep=st.integers(min(n, 10), n),
            must_keep_kv=st.just(0),
            reserved_tokens=st.integers(1, 300),
            context_tokens=st.integers(1, 400),
            supported=st.sampled_from([BOTH, frozenset({Route.FULL})]),
        )
    ),
    capacity=st.integers(10, 200),
    threshold=st.integers(0, 200),
)
def test_whatever_is_chosen_holds(wanted, budget, inputs, capacity, threshold):
    defaults = Defaults(SpecPc(capacity, window=10), threshold)
    inputs = replace(inputs, wanted=wanted, budget=budget, defaults=defaults)
    try:
        choice = choose_route(inputs)
    except PresiftError as error:
        if wanted in (None, Route.FULL) and not budget.strict:
            assert is_justified(error, inputs)
        return
    assert choice.route in inputs.supported
    if wanted is Route.FULL:
        assert choice.route is Route.FULL
    if choice.route is Route.FULL:
        assert choice.policy is None and inputs.prompt_tokens + inputs.least_new_tokens <= inputs.context_tokens
        if budget.strict and budget.capacity is not None:
            assert inputs.prompt_tokens <= budget.capacity
        return
    kept = choice.policy.capacity
    assert choice.policy.window == 10 <= kept < inputs.prompt_tokens
    assert inputs.must_keep <= kept <= inputs.room
    assert budget.capacity is None or kept <= budget.capacity
    above = threshold if budget.compress_above_tokens is None else budget.compress_above_tokens
    assert inputs.prompt_tokens > above or inputs.prompt_tokens > inputs.room


def is_justified(error, inputs):
    """Whether a refusal of a route that is served, without `strict`, has one of the two valid reasons."""
    too_long = isinstance(error, PromptTooLong) and (inputs.prompt_tokens > inputs.room or inputs.room < 1)
    below_window = type(error) is InvalidRequest and inputs.budget.capacity is not None and inputs.budget.capacity < 10
    return too_long or below_window


def test_check_fits_says_how_many_tokens_fit():
    inputs = replace(INPUTS, least_new_tokens=10)
    with pytest.raises(PromptTooLong, match=r"1991 tokens.*<= 1990"):
        check_fits_shortest_answer(replace(inputs, prompt_tokens=1991))
    check_fits_shortest_answer(replace(inputs, prompt_tokens=1990))


def test_a_prompt_of_protected_tokens_says_what_they_are():
    choice = choose(must_keep=101, protected_kinds=(("system messages", 80), ("the question", 21)))
    assert choice.reason is Reason.PROTECTED_OVER_BUDGET
    assert choice.detail.endswith("of 100 tokens (system messages 80, the question 21)")
