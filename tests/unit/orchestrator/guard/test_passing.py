"""Routing past the routes that the quality guard has switched off."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong
from presift.core.plan import Route
from presift.core.policies import SpecKv, SpecPc
from presift.orchestrator.domain.request import Budget, KvOptions
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.choice import Defaults, Facts, Reason
from presift.orchestrator.routing.router import avoided, choose

FULL, PC, KV, KV_PC = Route.FULL, Route.SPEC_PC, Route.SPEC_KV, Route.SPEC_KV_PC
DEFAULTS = Defaults(SpecPc(100, window=10), 400, spec_kv=SpecKv(50, window=8, lookahead_tokens=5), cascade_capacity=200)
FACTS = Facts(
    prompt_tokens=1000,
    must_keep=10,
    must_keep_kv=8,
    max_new_tokens=50,
    context_tokens=2000,
    supported=frozenset(Route),
)


def off(*routes, facts=FACTS):
    return replace(facts, off=dict.fromkeys(routes, "is switched off"))


def chosen(wanted, facts, **budget):
    return choose(wanted, Budget(**budget), KvOptions(), facts, DEFAULTS)


@pytest.mark.parametrize("route", [PC, KV, KV_PC])
def test_a_named_route_that_is_off_is_full(route):
    choice = chosen(route, off(route))
    assert (choice.route, choice.reason) == (FULL, Reason.ROUTE_SWITCHED_OFF)
    assert f"{route} is switched off" in choice.detail and choice.forecast is not None
    assert chosen(route, off()).route is route


def test_what_a_named_route_comes_to_counts():
    """Over max_prompt_tokens spec_kv compresses the prompt first: that is spec_kv_pc."""
    assert chosen(KV, off(KV), max_prompt_tokens=300).route is KV_PC
    assert chosen(KV, off(KV_PC), max_prompt_tokens=300).route is FULL


def test_auto_takes_another():
    assert chosen(None, off(), max_kv_tokens=60).route is KV
    choice = chosen(None, off(KV), max_kv_tokens=60)
    assert choice.route is KV_PC and "spec_kv is switched off" in choice.detail


def test_auto_without_any_other_is_full():
    choice = chosen(None, off(PC, KV, KV_PC))
    assert (choice.route, choice.reason) == (FULL, Reason.ROUTE_SWITCHED_OFF)
    assert "spec_pc is switched off" in choice.detail
    assert chosen(None, off(PC, KV, KV_PC), max_prompt_tokens=100).route is FULL  # the nearest


@pytest.mark.parametrize("wanted", [PC, None])
def test_what_does_not_fit_is_compressed_all_the_same(wanted):
    facts = off(PC, KV, KV_PC, facts=replace(FACTS, prompt_tokens=3000))
    choice = chosen(wanted, facts)
    assert choice.route is PC and "although spec_pc is switched off" in choice.detail


@pytest.mark.parametrize("wanted", [PC, None])
@pytest.mark.parametrize("budget", [{"max_prompt_tokens": 100}, {"max_kv_tokens": 100, "max_prompt_tokens": 100}])
def test_a_strict_budget_is_kept_all_the_same(wanted, budget):
    choice = chosen(wanted, off(PC, KV, KV_PC), strict=True, **budget)
    assert choice.route is not FULL and "although" in choice.detail


def test_a_budget_that_only_what_is_off_is_fine_enough_for_is_full():
    """Of KV whole pages are kept: 12 tokens are none."""
    facts = off(PC, facts=replace(FACTS, kv_page_tokens=16))
    choice = chosen(None, facts, max_kv_tokens=12)
    assert (choice.route, choice.reason) == (FULL, Reason.ROUTE_SWITCHED_OFF) and choice.forecast is not None
    for prompt_tokens, strict in ((3000, False), (1000, True)):
        taken = chosen(None, replace(facts, prompt_tokens=prompt_tokens), max_kv_tokens=12, strict=strict)
        assert (taken.route, taken.policy.capacity) == (PC, 12) and "although spec_pc" in taken.detail
    with pytest.raises(InvalidRequest):
        chosen(None, facts, max_kv_tokens=9)


def test_what_cannot_be_done_either_way_is_the_same_error():
    facts = replace(FACTS, prompt_tokens=3000)
    with pytest.raises(PromptTooLong):
        chosen(KV, off(KV, facts=facts))
    with pytest.raises(BudgetExceeded):
        chosen(KV, off(KV), strict=True, max_prompt_tokens=100)


def test_what_was_avoided():
    question = Question(Budget(), KvOptions(), off(PC), DEFAULTS)
    choice = chosen(None, question.facts)
    found = avoided(choice, None, question)
    assert found.route is PC and found.policy.capacity == 100 and choice.route is not PC
    assert avoided(chosen(KV, question.facts), KV, question) is None  # another route, which is on
    too_long = replace(question, facts=replace(question.facts, prompt_tokens=3000))
    assert avoided(chosen(PC, too_long.facts), PC, too_long) is None  # it was taken all the same


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
def test_a_route_that_is_off_is_never_taken_unsaid_nor_is_a_request_refused_for_it(wanted, routes, tokens, budget):
    facts = replace(FACTS, prompt_tokens=tokens)
    try:
        plain = chosen(wanted, facts, **budget)
    except PresiftError as error:
        plain = type(error)
    try:
        choice = chosen(wanted, off(*routes, facts=facts), **budget)
    except PresiftError as error:
        assert plain is type(error)
        return
    assert choice.route not in routes or "although" in choice.detail
    if not routes:
        assert choice == plain
