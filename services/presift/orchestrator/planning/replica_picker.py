"""Picks the replica of the target that answers a request.

By affinity, so that a document finds its cached prefix and all orchestrators agree without coordination; another one if
it is predicted to be much sooner, because it holds the document or because the first is slow or busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from presift.core.errors import PresiftError
from presift.core.plan import ModelInfo
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, Target
from presift.orchestrator.domain.request import Budget, TokenizedPrompt
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.routing.choice import RouteChoice, RoutingInputs
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.replica_choice import choose_among, merit
from presift.telemetry.metrics import count

# Predictions are no more exact than this; a smaller gain is not worth a cold cache.
_SOONER_SHARE, _SOONER_MS = 0.3, 20.0


class ReplicaPicker:
    """Knows the target's replicas and their states."""

    def __init__(self, target: Target, models: ModelRegistry, estimator: CostEstimator) -> None:
        self._target = target
        self._models = models
        self._estimator = estimator

    def pick(
        self, tokens: TokenizedPrompt, inputs: RoutingInputs, target: ModelInfo, spent_ms: float
    ) -> tuple[ReplicaRef, SystemState]:
        """The replica and its state. ANY_REPLICA if none can be reached now: the call will fail with the reason."""
        replicas = self._target.replicas(tokens)
        draft = self._models.draft
        if len(replicas) < 2:
            only = replicas[0] if replicas else ANY_REPLICA
            state = self._estimator.state(tokens.ids, target, draft, spent_ms, salt=tokens.salt, replica=only.name)
            return only, state
        names = [each.name for each in replicas]
        states = self._estimator.states(tokens.ids, target, draft, names, spent_ms, salt=tokens.salt)
        sooner = _much_sooner(inputs, states, names[0])
        count("presift.replica.picked", role="target", by="affinity" if sooner == names[0] else "forecast")
        return next(each for each in replicas if each.name == sooner), states[sooner]

    def holding(self, replica: ReplicaRef) -> AbstractContextManager[None]:
        """Count the replica as busy until the block ends."""
        return self._target.holding(replica)


def _much_sooner(inputs: RoutingInputs, states: Mapping[str, SystemState], own: str) -> str:
    """The replica that answers the request much sooner than its own one; its own one if there is none."""
    try:
        found = choose_among(inputs, states)
    except PresiftError:
        return own  # all refuse: planning raises the reason
    if found.replica == own:
        return own
    try:
        here = choose_among(replace(inputs, state=states[own]), {own: states[own]}).choice
    except PresiftError:
        return found.replica
    return found.replica if is_much_sooner(found.choice, here, inputs.budget) else own


def is_much_sooner(there: RouteChoice, here: RouteChoice, budget: Budget) -> bool:
    """Whether only `there` keeps the budget, or it gains more than predictions err by."""
    (is_late_there, there_ms), (is_late_here, here_ms) = merit(there, budget), merit(here, budget)
    if is_late_there != is_late_here:
        return is_late_here
    return here_ms - there_ms > max(_SOONER_MS, _SOONER_SHARE * here_ms)
