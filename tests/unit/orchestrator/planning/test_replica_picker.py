"""Seating: a request's own replica, unless another is much sooner."""

from dataclasses import replace

import numpy as np
import pytest

from presift.core.plan import ModelInfo
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef
from presift.orchestrator.domain.request import Budget, KvOptions, TokenizedPrompt
from presift.orchestrator.planning.replica_picker import ReplicaPicker, is_much_sooner
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.cost_model import Forecast, QueuedWork

from ..routing.test_auto import DEFAULTS, FACTS

TARGET = ModelInfo("t", "r1", "f", 4096, 4, 2, 1000)
TOKENS = TokenizedPrompt(np.arange(FACTS.prompt_tokens, dtype=np.uint32), ())
COLD = FACTS.outlook
WARM = replace(COLD, cached_tokens=960)


class Targets:
    has_choice = True

    def __init__(self, *names):
        self.names = names

    def seats(self, key):
        return [ReplicaRef(name, key) for name in self.names]


class Economy:
    def __init__(self, outlooks):
        self.all = outlooks

    def outlooks(self, ids, target, draft, names, spent_ms, *, salt):
        return {name: self.all[name] for name in names}


class Models:
    draft = None


def seated(outlooks, **budget):
    usher = ReplicaPicker(Targets(*outlooks), Models(), Economy(outlooks))
    return usher.seat(None, Question(Budget(**budget), KvOptions(), FACTS, DEFAULTS), TOKENS, TARGET).replica


@pytest.mark.parametrize(
    ("outlooks", "best"),
    [
        # The first is the request's own.
        ({"b": COLD, "a": COLD}, "b"),
        ({"b": COLD, "a": WARM}, "a"),
        ({"b": replace(COLD, load=QueuedWork(target_ms=9000)), "a": COLD}, "a"),
        # Not much sooner: nobody leaves a cache for that.
        ({"b": replace(COLD, load=QueuedWork(target_ms=10)), "a": COLD}, "b"),
        ({"b": COLD}, "b"),
    ],
)
def test_its_own_unless_another_is_much_sooner(outlooks, best):
    assert seated(outlooks) == best


def test_refused_everywhere_it_is_its_own_and_planning_says_so():
    assert seated({"b": COLD, "a": WARM}, max_ttft_ms=1, strict=True) == "b"


def test_nobody_can_be_asked():
    assert ReplicaPicker(Targets(), Models(), Economy({})).seat(None, None, TOKENS, TARGET) is ANY_REPLICA


def choice(ttft_ms):
    from presift.core.plan import Route
    from presift.orchestrator.routing.choice import Reason, RouteChoice

    forecast = Forecast(ttft_ms, ttft_ms, 0.0, ttft_ms, 0.0, 0.0, ttft_ms, 1.0, 100, 100)
    return RouteChoice(Route.FULL, Reason.REQUESTED, "", forecast=forecast)


@pytest.mark.parametrize(
    ("there_ms", "here_ms", "limit_ms", "moves"),
    [
        (69.0, 100.0, None, True),
        (71.0, 100.0, None, False),
        (1.0, 20.0, None, False),
        (1.0, 30.0, None, True),
        # It keeps the limit, which is not kept here.
        (95.0, 100.0, 99, True),
        (95.0, 100.0, 101, False),
    ],
)
def test_how_much_is_much(there_ms, here_ms, limit_ms, moves):
    assert is_much_sooner(choice(there_ms), choice(here_ms), Budget(max_ttft_ms=limit_ms)) is moves
