"""A request's own replica, unless another is much sooner."""

from dataclasses import replace

import numpy as np
import pytest

from presift.core.plan import ModelInfo, Route
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef
from presift.orchestrator.domain.request import Budget, TokenizedPrompt
from presift.orchestrator.planning.replica_picker import ReplicaPicker, is_much_sooner
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import Forecast, QueuedWork

from ....builders import INPUTS, routing_inputs

TARGET = ModelInfo("t", "r1", "f", 4096, 4, 2, 1000)
TOKENS = TokenizedPrompt(np.arange(INPUTS.prompt_tokens, dtype=np.uint32), ())
COLD = INPUTS.state
WARM = replace(COLD, cached_tokens=960)


class Targets:
    def __init__(self, *names):
        self.names = names

    def replicas(self, tokens):
        return [ReplicaRef(name) for name in self.names]


class Estimator:
    def __init__(self, states):
        self.all = states

    def state(self, ids, target, draft, spent_ms, *, salt, replica):
        return self.all.get(replica, COLD)


class Models:
    draft = None


def picked(states, **budget):
    picker = ReplicaPicker(Targets(*states), Models(), Estimator(states))
    found = picker.states(TOKENS, TARGET, 0.0)
    inputs = replace(routing_inputs(**budget), state=next(iter(found.values())))
    replica = picker.pick(inputs, found)
    return replica, found[replica]


@pytest.mark.parametrize(
    ("states", "best"),
    [
        # The first is the request's own, by affinity.
        ({"b": COLD, "a": COLD}, "b"),
        ({"b": COLD, "a": WARM}, "a"),
        ({"b": replace(COLD, queued=QueuedWork(target_ms=9000)), "a": COLD}, "a"),
        # Not much sooner: not worth a cold cache.
        ({"b": replace(COLD, queued=QueuedWork(target_ms=10)), "a": COLD}, "b"),
        ({"b": COLD}, "b"),
    ],
)
def test_its_own_unless_another_is_much_sooner(states, best):
    replica, state = picked(states)
    assert replica.name == best and state is states[best]


def test_its_own_if_every_replica_refuses():
    """Planning then raises the reason."""
    assert picked({"b": COLD, "a": WARM}, max_ttft_ms=1, strict=True)[0].name == "b"


def test_any_replica_if_none_can_be_reached():
    assert picked({}) == (ANY_REPLICA, COLD)


def choice(ttft_ms):
    forecast = Forecast(ttft_ms, ttft_ms, 0.0, ttft_ms, 0.0, 0.0, ttft_ms, 1.0, 100, 100)
    return RouteChoice(Route.FULL, Reason.REQUESTED, "", forecast=forecast)


@pytest.mark.parametrize(
    ("there_ms", "here_ms", "limit_ms", "moves"),
    [
        (69.0, 100.0, None, True),
        (71.0, 100.0, None, False),
        (1.0, 20.0, None, False),
        (1.0, 30.0, None, True),
        # Only the other one keeps the limit.
        (95.0, 100.0, 99, True),
        (95.0, 100.0, 101, False),
    ],
)
def test_how_much_sooner_is_much_sooner(there_ms, here_ms, limit_ms, moves):
    assert is_much_sooner(choice(there_ms), choice(here_ms), Budget(max_ttft_ms=limit_ms)) is moves
