"""Routing without the routes that the quality guard has switched off."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong
from presift.core.plan import Route
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.router import choose, switched_off_choice

from ....builders import FULL, KV, KV_PC, PC, routing_inputs

INPUTS = routing_inputs(state=SystemState())


def without(*routes, **changes):
    """Inputs with these routes switched off."""
    return routing_inputs(INPUTS, off=dict.fromkeys(routes, "is switched off"), **changes)


def chosen(wanted, inputs, **budget):
    return choose(routing_inputs(inputs, wanted=wanted, **budget))


@pytest.mark.parametrize("route", [PC, KV, KV_PC])
def test_a_named_route_that_is_off_is_full(route):
    choice = chosen(route, without(route))
    assert (choice.route, choice.reason) == (FULL, Reason.ROUTE_SWITCHED_OFF)
    assert f"{route} is switched off" in choice.detail and choice.forecast is not None
    assert chosen(route, without()).route is route


def test_the_route_that_a_named_route_turns_into_counts():
    """Over max_prompt_tokens spec_kv compresses the prompt first: that is spec_kv_pc."""
    assert chosen(KV, without(KV), max_prompt_tokens=300).route is KV_PC
    assert chosen(KV, without(KV_PC), max_prompt_tokens=300).route is FULL


def test_auto_chooses_another_route():
    assert chosen(None, without(), max_kv_tokens=60).route is KV
    choice = chosen(None, without(KV), max_kv_tokens=60)
    assert choice.route is KV_PC and "spec_kv is switched off" in choice.detail


def test_auto_without_another_route_is_full():
    choice = chosen(None, without(PC, KV, KV_PC))
    assert (choice.route, choice.reason) == (FULL, Reason.ROUTE_SWITCHED_OFF)
    assert "spec_pc is switched off" in choice.detail
    assert chosen(None, without(PC, KV, KV_PC), max_prompt_tokens=100).route is FULL  # the nearest


@pytest.mark.parametrize("wanted", [PC, None])
def test_a_prompt_that_does_not_fit_is_compressed_nevertheless(wanted):
    inputs = without(PC, KV, KV_PC, prompt_tokens=3000)
    choice = chosen(wanted, inputs)
    assert choice.route is PC and "although spec_pc is switched off" in choice.detail


@pytest.mark.parametrize("wanted", [PC, None])
@pytest.mark.parametrize("budget", [{"max_prompt_tokens": 100}, {"max_kv_tokens": 100, "max_prompt_tokens": 100}])
def test_a_strict_budget_is_kept_nevertheless(wanted, budget):
    choice = chosen(wanted, without(PC, KV, KV_PC), strict=True, **budget)
    assert choice.route is not FULL and "although" in choice.detail


def test_a_budget_that_only_a_switched_off_route_can_keep_is_full():
    """KV is kept in whole pages of 16 tokens: a budget of 12 holds none."""
    inputs = without(PC, kv_page_tokens=16)
    choice = chosen(None, inputs, max_kv_tokens=12)
    assert (choice.route, choice.reason) == (FULL, Reason.ROUTE_SWITCHED_OFF) and choice.forecast is not None
    for prompt_tokens, strict in ((3000, False), (1000, True)):
        taken = chosen(None, inputs, prompt_tokens=prompt_tokens, max_kv_tokens=12, strict=strict)
        assert (taken.route, taken.policy.capacity) == (PC, 12) and "although spec_pc" in taken.detail
    with pytest.raises(InvalidRequest):
        chosen(None, inputs, max_kv_tokens=9)


def test_a_request_that_is_refused_either_way_gets_the_same_error():
    with pytest.raises(PromptTooLong):
        chosen(KV, without(KV, prompt_tokens=3000))
    with pytest.raises(BudgetExceeded):
        chosen(KV, without(KV), strict=True, max_prompt_tokens=100)


def test_the_choice_that_was_avoided():
    inputs = without(PC)
    choice = choose(inputs)
    found = switched_off_choice(choice, inputs)
    assert found.route is PC and found.policy.capacity == 100 and choice.route is not PC
    another = replace(inputs, wanted=KV)
    assert switched_off_choice(choose(another), another) is None  # its route is on
    too_long = replace(inputs, wanted=PC, prompt_tokens=3000)
    assert switched_off_choice(choose(too_long), too_long) is None  # its route was chosen nevertheless


@given(
    st.sampled_from([None, *Route]),
    st.sets(st.sampled_from([PC, KV, KV_PC])),
    st.integers(1, 4000),
    st.fixed_dictionaries(
        {
            "max_prompt_tokens": st.none() | st.integers(20, 1500),
            "max_kv_tokens": st.none() | st.integers(20, 1500),
            "strict": st.booleans(),
        }
    ),
)
def test_a_switched_off_route_is_chosen_only_with_a_remark_and_refuses_no_request(wanted, routes, tokens, budget):
    try:
        plain = chosen(wanted, INPUTS, prompt_tokens=tokens, **budget)
    except PresiftError as error:
        plain = type(error)
    try:
        choice = chosen(wanted, without(*routes, prompt_tokens=tokens), **budget)
    except PresiftError as error:
        assert plain is type(error)
        return
    assert choice.route not in routes or "although" in choice.detail
    if not routes:
        assert choice == plain
