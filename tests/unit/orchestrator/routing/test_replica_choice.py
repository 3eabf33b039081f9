"""Routing among replicas: the one that answers soonest within the budget."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, PresiftError
from presift.core.plan import Route
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.cost_model import QueuedWork
from presift.orchestrator.routing.replica_choice import choose_among
from presift.orchestrator.routing.router import choose

from ....builders import COSTS, INPUTS, routing_inputs
from .test_auto import ANY_INPUTS, LIMITS

COLD = INPUTS.state
WARM = replace(COLD, cached_tokens=960)
BUSY = replace(COLD, queued=QueuedWork(target_ms=5000))
SLOW = replace(COLD, costs=replace(COSTS, target=replace(COSTS.target, token_ms=30.0)))


def among(states, **changes):
    return choose_among(routing_inputs(**changes), states)


@pytest.mark.parametrize(
    ("states", "budget", "best", "route"),
    [
        ({"a": COLD, "b": WARM, "c": SLOW}, {}, "b", Route.FULL),
        ({"a": BUSY, "b": COLD, "c": SLOW}, {}, "b", Route.SPEC_PC),
        # `a` reads the whole prompt soonest, `b` the compressed one.
        ({"a": replace(BUSY, cached_tokens=800), "b": SLOW}, {"max_prompt_tokens": 100}, "b", Route.SPEC_PC),
        ({"a": BUSY, "b": COLD}, {"max_ttft_ms": 11_111}, "b", Route.FULL),
        ({"a": BUSY, "b": SLOW}, {"max_kv_tokens": 500}, "a", Route.SPEC_KV),
        ({"only": COLD}, {"max_kv_tokens": 1000}, "only", Route.FULL),
    ],
)
def test_the_replica_that_answers_soonest(states, budget, best, route):
    placed = among(states, **budget)
    assert (placed.replica, placed.choice.route) == (best, route)


def test_a_compressed_entry_attracts_the_request():
    policy = among({"a": COLD}, max_kv_tokens=500).choice.policy
    holds = replace(COLD, compressed=((policy, 0),), entries=frozenset({policy}))
    placed = among({"a": COLD, "b": holds}, max_kv_tokens=500)
    assert (placed.replica, placed.choice.route) == ("b", Route.SPEC_KV) and placed.choice.forecast.ttft_ms == 10


def test_a_replica_that_keeps_the_budget_is_preferred():
    late = replace(COLD, queued=QueuedWork(target_ms=90_000))
    placed = among({"late": late, "cold": COLD}, max_ttft_ms=2_000, max_prompt_tokens=100)
    assert placed.replica == "cold" and placed.choice.reason is Reason.OVER_BUDGET


def test_every_replica_refuses():
    with pytest.raises(BudgetExceeded):
        among({"a": BUSY, "b": SLOW}, max_ttft_ms=1, strict=True)
    with pytest.raises(PresiftError, match="no replica"):
        among({})


REPLICAS = st.lists(
    st.builds(
        lambda cached, wait, speed: (cached, wait, speed),
        st.integers(0, 1500),
        st.integers(0, 9000),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=16,
)


def replicas(inputs, drawn):
    return {
        str(number): replace(
            inputs.state,
            cached_tokens=min(cached, inputs.prompt_tokens),
            queued=QueuedWork(target_ms=wait),
            costs=replace(COSTS, target=replace(COSTS.target, token_ms=float(speed))),
        )
        for number, (cached, wait, speed) in enumerate(drawn)
    }


@given(limits=st.fixed_dictionaries(LIMITS), strict=st.booleans(), inputs=ANY_INPUTS, drawn=REPLICAS)
def test_never_worse_than_any_one_and_deterministic(limits, strict, inputs, drawn):
    """Without a limit on time no replica alone is sooner; with one it is kept wherever the first two can keep it."""
    states = replicas(inputs, drawn)
    inputs = routing_inputs(inputs, **limits, strict=strict, compress_above_tokens=0)
    alone = [choice_at(state, inputs) for state in states.values()]
    answered = [each for each in alone if not isinstance(each, PresiftError)]
    if not answered:
        with pytest.raises(PresiftError):
            choose_among(inputs, states)
        return
    placed = choose_among(inputs, states)
    assert placed == choose_among(inputs, dict(reversed(states.items())))
    if limits["max_ttft_ms"] is None:
        same = [each.forecast.ttft_ms for each in answered if each.route is placed.choice.route]
        assert placed.choice.forecast.ttft_ms <= min(same) + 1e-3
        assert placed.choice.route is not Route.FULL or placed.choice == choice_at(states[placed.replica], inputs)


def choice_at(state, inputs):
    try:
        return choose(replace(inputs, state=state))
    except PresiftError as error:
        return error
