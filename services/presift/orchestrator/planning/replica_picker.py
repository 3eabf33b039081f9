"""Picks the replica of the target that answers a request.

By affinity, so that a document finds its cached prefix and all orchestrators agree without coordination; another one if
it is predicted to be much sooner, because it holds the document or because the first is slow or busy.
"""

from __future__ import annotations

from collections.abc import Mapping

from presift.core.errors import PresiftError
from presift.core.plan import ModelInfo
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, Target
from presift.orchestrator.domain.request import Budget, TokenizedPrompt
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.routing.choice import RouteChoice, RoutingInputs
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.replica_choice import choose_among, merit
from presift.orchestrator.routing.router import choose
from presift.telemetry.metrics import count

# Predictions are no more exact than this; a smaller gain is not worth a cold cache.
_SOONER_SHARE, _SOONER_MS = 0.3, 20.0


class ReplicaPicker:
    """Knows the target's replicas and their states."""

    def __init__(self, target: Target, models: ModelRegistry, estimator: CostEstimator) -> None:
        self._target = target
        self._models = models
        self._estimator = estimator

    def states(self, tokens: TokenizedPrompt, target: ModelInfo, spent_ms: float) -> dict[ReplicaRef, SystemState]:
        """A snapshot of costs at each replica that may answer, the prompt's own one by affinity first.

        Only ANY_REPLICA if none can be reached now: the call will fail with the reason.
        """
        draft, states = self._models.draft, {}
        for each in self._target.replicas(tokens) or (ANY_REPLICA,):
            states[each] = self._estimator.state(
                tokens.ids, target, draft, spent_ms, salt=tokens.salt, replica=each.name
            )
        return states

    def pick(self, inputs: RoutingInputs, states: Mapping[ReplicaRef, SystemState]) -> ReplicaRef:
        """The first replica, whose state `inputs` hold, or another one that answers much sooner."""
        own = next(iter(states))
        if len(states) < 2:
            return own
        sooner = _much_sooner(inputs, {each.name: state for each, state in states.items()}, own.name)
        count("presift.replica.picked", role="target", by="affinity" if sooner == own.name else "forecast")
        return next(each for each in states if each.name == sooner)


def _much_sooner(inputs: RoutingInputs, states: Mapping[str, SystemState], own: str) -> str:
    """The replica that answers the request much sooner than its own one; its own one if there is none."""
    try:
        found = choose_among(inputs, states)
    except PresiftError:
        return own  # all refuse: planning raises the reason
    if found.replica == own:
        return own
    try:
        here = choose(inputs)
    except PresiftError:
        return found.replica
    return found.replica if is_much_sooner(found.choice, here, inputs.budget) else own


def is_much_sooner(there: RouteChoice, here: RouteChoice, budget: Budget) -> bool:
    """Whether only `there` keeps the budget, or it gains more than predictions err by."""
    (is_late_there, there_ms), (is_late_here, here_ms) = merit(there, budget), merit(here, budget)
    if is_late_there != is_late_here:
        return is_late_here
    return here_ms - there_ms > max(_SOONER_MS, _SOONER_SHARE * here_ms)
