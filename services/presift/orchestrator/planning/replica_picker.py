"""Seating: which of the target's replicas is to answer a request.

Its own by affinity, so that a document meets its cache and all orchestrators agree without a word; another where what
was learnt says that it is much sooner there: the document is held elsewhere, or its own replica is slow or busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from presift.core.errors import PresiftError
from presift.core.plan import ModelInfo, Route
from presift.orchestrator.backends.affinity import affinity_key
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, Target
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.prompt.tokenizer import Tokenized
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.choice import RouteChoice
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.replica_choice import choose_among, merit
from presift.telemetry.metrics import count

# Predictions are no more exact than this; less is not worth a cold cache.
_SOONER_SHARE, _SOONER_MS = 0.3, 20.0


class ReplicaPicker:
    """Shows requests to the target's replicas."""

    def __init__(self, target: Target, models: ModelRegistry, economy: CostEstimator) -> None:
        self._target = target
        self._models = models
        self._economy = economy

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to show."""
        return self._target.has_choice

    def holding(self, seat: ReplicaRef) -> AbstractContextManager[None]:
        """The seat counts as taken until the block ends."""
        return self._target.holding(seat)

    def seat(self, wanted: Route | None, question: Question, tokens: Tokenized, target: ModelInfo) -> ReplicaRef:
        """ANY_REPLICA where nobody can be asked now: the call will say so."""
        seats = self._target.seats(affinity_key(tokens))
        if len(seats) < 2:
            return seats[0] if seats else ANY_REPLICA
        spent_ms = question.facts.outlook.load.spent_ms
        names = [seat.replica for seat in seats]
        outlooks = self._economy.outlooks(tokens.ids, target, self._models.draft, names, spent_ms, salt=tokens.salt)
        sooner = _much_sooner(wanted, question, outlooks, names[0])
        count("presift.replica.picked", role="target", by="affinity" if sooner == names[0] else "forecast")
        return next(seat for seat in seats if seat.replica == sooner)


def _much_sooner(wanted: Route | None, question: Question, outlooks: Mapping[str, SystemState], own: str) -> str:
    """The replica at which the request is answered much sooner than at its own; its own where there is none."""
    try:
        placed = choose_among(wanted, question, outlooks)
    except PresiftError:
        return own  # refused everywhere: planning will say so
    if placed.replica == own:
        return own
    try:
        here = choose_among(wanted, question, {own: outlooks[own]}).choice
    except PresiftError:
        return placed.replica
    return placed.replica if is_much_sooner(placed.choice, here, question.budget) else own


def is_much_sooner(there: RouteChoice, here: RouteChoice, budget: Budget) -> bool:
    """Whether it keeps a budget that is not kept here, or wins more than predictions are wrong by."""
    (is_late_there, there_ms), (is_late_here, here_ms) = merit(there, budget), merit(here, budget)
    if is_late_there != is_late_here:
        return is_late_here
    return here_ms - there_ms > max(_SOONER_MS, _SOONER_SHARE * here_ms)
