"""Routing among replicas: where the request is answered soonest within its budget."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, PresiftError
from presift.core.plan import Route
from presift.orchestrator.domain.request import Budget, KvOptions
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.cost_model import QueuedWork
from presift.orchestrator.routing.replica_choice import choose_among
from presift.orchestrator.routing.router import choose

from .routing.test_auto import ANY_FACTS, DEFAULTS, FACTS, LIMITS, SPEEDS

COLD = FACTS.outlook
WARM = replace(COLD, cached_tokens=960)
BUSY = replace(COLD, load=QueuedWork(target_ms=5000))
SLOW = replace(COLD, speeds=replace(SPEEDS, target=replace(SPEEDS.target, token_ms=30.0)))


def among(outlooks, facts=FACTS, **budget):
    return choose_among(None, Question(Budget(**budget), KvOptions(), facts, DEFAULTS), outlooks)


@pytest.mark.parametrize(
    ("outlooks", "budget", "best", "route"),
    [
        ({"a": COLD, "b": WARM, "c": SLOW}, {}, "b", Route.FULL),
        ({"a": BUSY, "b": COLD, "c": SLOW}, {}, "b", Route.SPEC_PC),
        # The whole prompt is soonest at `a`, what is compressed at `b`.
        ({"a": replace(BUSY, cached_tokens=800), "b": SLOW}, {"max_prompt_tokens": 100}, "b", Route.SPEC_PC),
        ({"a": BUSY, "b": COLD}, {"max_ttft_ms": 11_111}, "b", Route.FULL),
        ({"a": BUSY, "b": SLOW}, {"max_kv_tokens": 500}, "a", Route.SPEC_KV),
        ({"only": COLD}, {"max_kv_tokens": 1000}, "only", Route.FULL),
    ],
)
def test_where_it_is_soonest(outlooks, budget, best, route):
    placed = among(outlooks, **budget)
    assert (placed.replica, placed.choice.route) == (best, route) and placed.weighed[best] == placed.choice


def test_an_entry_draws_the_request():
    policy = among({"a": COLD}, max_kv_tokens=500).choice.policy.canonical()
    holds = replace(COLD, compressed=((policy, 0),), entries=frozenset({policy}))
    placed = among({"a": COLD, "b": holds}, max_kv_tokens=500)
    assert (placed.replica, placed.choice.route) == ("b", Route.SPEC_KV) and placed.choice.forecast.ttft_ms == 10


def test_whoever_keeps_the_budget_goes_before_whoever_is_nearest():
    late = replace(COLD, load=QueuedWork(target_ms=90_000))
    placed = among({"late": late, "cold": COLD}, max_ttft_ms=2_000, max_prompt_tokens=100)
    assert placed.replica == "cold" and placed.choice.reason is Reason.OVER_BUDGET


def test_all_refuse():
    with pytest.raises(BudgetExceeded):
        among({"a": BUSY, "b": SLOW}, max_ttft_ms=1, strict=True)
    with pytest.raises(PresiftError, match="no replica"):
        among({})


OUTLOOKS = st.lists(
    st.builds(
        lambda cached, wait, speed: (cached, wait, speed),
        st.integers(0, 1500),
        st.integers(0, 9000),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=16,
)


def replicas(facts, drawn):
    return {
        str(number): replace(
            facts.outlook,
            cached_tokens=min(cached, facts.prompt_tokens),
            load=QueuedWork(target_ms=wait),
            speeds=replace(SPEEDS, target=replace(SPEEDS.target, token_ms=float(speed))),
        )
        for number, (cached, wait, speed) in enumerate(drawn)
    }


@given(limits=st.fixed_dictionaries(LIMITS), strict=st.booleans(), facts=ANY_FACTS, drawn=OUTLOOKS)
def test_never_worse_than_any_one_and_deterministic(limits, strict, facts, drawn):
    """Without a limit on time no replica alone is sooner; with one it is kept wherever the first two can keep it."""
    outlooks, budget = replicas(facts, drawn), Budget(**limits, strict=strict, compress_above_tokens=0)
    alone = [choice_at(outlook, facts, budget) for outlook in outlooks.values()]
    answered = [each for each in alone if not isinstance(each, PresiftError)]
    question = Question(budget, KvOptions(), facts, DEFAULTS)
    if not answered:
        with pytest.raises(PresiftError):
            choose_among(None, question, outlooks)
        return
    placed = choose_among(None, question, outlooks)
    assert placed == choose_among(None, question, dict(reversed(outlooks.items())))
    if limits["max_ttft_ms"] is None:
        same = [each.forecast.ttft_ms for each in answered if each.route is placed.choice.route]
        assert placed.choice.forecast.ttft_ms <= min(same) + 1e-3
        assert placed.choice.route is not Route.FULL or placed.choice == choice_at(
            outlooks[placed.replica], facts, budget
        )


def choice_at(outlook, facts, budget):
    try:
        return choose(None, budget, KvOptions(), replace(facts, outlook=outlook), DEFAULTS)
    except PresiftError as error:
        return error
