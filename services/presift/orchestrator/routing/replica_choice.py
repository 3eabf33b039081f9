"""Chooses route and replica together, for a target with several replicas. Pure.

Each replica has a state of its own: its cache, its speed and its queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from presift.core.errors import InternalError, PresiftError
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs
from presift.orchestrator.routing.cost_model import RouteWork, SystemState
from presift.orchestrator.routing.forecast import remaining, with_forecast, work_of
from presift.orchestrator.routing.router import choose


@dataclass(frozen=True, slots=True)
class ReplicaChoice:
    """The chosen replica, and the request's choice there."""

    replica: str
    choice: RouteChoice


def choose_among(inputs: RoutingInputs, states: Mapping[str, SystemState]) -> ReplicaChoice:
    """The replica, among those with a state, that answers the request soonest within its budget.

    Compared are the replica that reads the whole prompt soonest and, if the request would be compressed there, the one
    that does the same work soonest: apart from cache, speed and queue a request costs the same everywhere. If the first
    replica refuses, the others are tried in order. Raises what `choose` raises if all refuse.
    """
    # Ties are broken by name, so that the order of the states does not matter.
    order = sorted(states, key=lambda replica: (_whole_ms(states[replica], inputs), replica))
    first, choice = _first(inputs, {replica: states[replica] for replica in order})
    if choice.policy is None:
        return ReplicaChoice(first, choice)
    took = _predicted(choice, inputs, states)
    # To the microsecond: smaller differences are ties, and the first one's choice is known already.
    soonest = min(order, key=lambda replica: (round(took[replica], 3), replica != first, replica))
    found = {first: choice}
    if soonest != first:
        found[soonest] = _elsewhere(choice, replace(inputs, state=states[soonest]))
    best = min(found, key=lambda replica: (merit(found[replica], inputs.budget), replica))
    return ReplicaChoice(best, found[best])


def merit(choice: RouteChoice, budget: Budget) -> tuple[bool, float]:
    """The sort key of choices, the best first: those that keep the budget, then the soonest."""
    ttft_ms = 0.0 if choice.forecast is None else choice.forecast.ttft_ms
    is_late = budget.max_ttft_ms is not None and ttft_ms > budget.max_ttft_ms
    return is_late or choice.reason is Reason.BUDGET_NOT_MET, ttft_ms


def _first(inputs: RoutingInputs, states: Mapping[str, SystemState]) -> tuple[str, RouteChoice]:
    """The first replica that does not refuse, and the choice there. Raises the first refusal."""
    refusal: PresiftError | None = None
    for replica, state in states.items():
        try:
            return replica, choose(replace(inputs, state=state))
        except PresiftError as error:
            refusal = refusal or error
    raise refusal or InternalError("no replica to choose among")


def _elsewhere(choice: RouteChoice, inputs: RoutingInputs) -> RouteChoice:
    """What a compressing choice becomes at another replica, where it is soonest.

    The whole prompt takes longer there and the choice less time, so only a limit on time could change it.
    """
    if inputs.budget.max_ttft_ms is not None:
        return choose(inputs)
    return with_forecast(replace(choice, forecast=None), inputs)


def _whole_ms(state: SystemState, inputs: RoutingInputs) -> float:
    wait_ms = state.queued.target_ms + state.kv_wait_ms(inputs.prompt_tokens + inputs.reserved_tokens)
    return wait_ms + state.costs.target.ms(remaining(inputs.prompt_tokens, state.cached_tokens))


def _predicted(choice: RouteChoice, inputs: RoutingInputs, states: Mapping[str, SystemState]) -> dict[str, float]:
    """Milliseconds to the first token of this choice at each replica."""
    works: dict[object, RouteWork] = {}  # equal where the same is cached, and most replicas have nothing cached
    found = {}
    for replica, state in states.items():
        held = state.cached_tokens, state.compressed, state.entries
        if held not in works:
            works[held] = work_of(choice, inputs.prompt_tokens, state)
        found[replica] = state.forecast(works[held], inputs.reserved_tokens).ttft_ms
    return found
