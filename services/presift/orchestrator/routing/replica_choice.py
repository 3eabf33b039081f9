"""Placing: where a target has several replicas, the route and the replica together. Pure.

Each replica has an outlook of its own: what it holds, how fast it is, who waits there. For an orchestrator that can
address them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from presift.core.errors import InternalError, PresiftError
from presift.core.plan import Route
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.choice import Facts, Reason, RouteChoice
from presift.orchestrator.routing.cost_model import RouteWork, SystemState
from presift.orchestrator.routing.forecast import rest, with_forecast, work_of
from presift.orchestrator.routing.router import choose


@dataclass(frozen=True, slots=True)
class ReplicaChoice:
    """Where a request goes, what it gets there, and what was weighed against it, by replica."""

    replica: str
    choice: RouteChoice
    weighed: Mapping[str, RouteChoice]


def choose_among(wanted: Route | None, question: Question, outlooks: Mapping[str, SystemState]) -> ReplicaChoice:
    """The replica, of those with an outlook, at which the request is answered soonest within its budget.

    Weighed are the replica that reads the whole prompt soonest, and, where it would compress, the one that does the
    same soonest: a request costs the same wherever it goes, but for what is cached, how fast it is and who waits. Where
    the first refuses, every other one is asked until one does not. Raises what `choose` raises, where all do.
    """
    facts = question.facts
    # Among equals by name, so that the order of the outlooks says nothing.
    order = sorted(outlooks, key=lambda replica: (_whole_ms(outlooks[replica], facts), replica))
    first, weighed = _first(wanted, question, {replica: outlooks[replica] for replica in order})
    if weighed.policy is None:
        return ReplicaChoice(first, weighed, {first: weighed})
    took = _predicted(weighed, facts, outlooks)
    # To the microsecond: what differs by less is the same, and the first is weighed already.
    soonest = min(order, key=lambda replica: (round(took[replica], 3), replica != first, replica))
    found = {first: weighed}
    if soonest != first:
        found[soonest] = _elsewhere(weighed, wanted, question, outlooks[soonest])
    best = min(found, key=lambda replica: (merit(found[replica], question.budget), replica))
    return ReplicaChoice(best, found[best], found)


def _first(wanted: Route | None, question: Question, outlooks: Mapping[str, SystemState]) -> tuple[str, RouteChoice]:
    """The first replica that does not refuse, and what the request gets there. Raises the first refusal."""
    refusal: PresiftError | None = None
    for replica, outlook in outlooks.items():
        try:
            return replica, _choice_at(outlook, wanted, question)
        except PresiftError as error:
            refusal = refusal or error
    raise refusal or InternalError("no replica to choose among")


def _elsewhere(choice: RouteChoice, wanted: Route | None, question: Question, outlook: SystemState) -> RouteChoice:
    """What a compressing choice becomes where it is soonest.

    There the whole prompt takes longer and the choice less time, so that only a limit on time could change it.
    """
    if question.budget.max_ttft_ms is not None:
        return _choice_at(outlook, wanted, question)
    return with_forecast(choice, question.budget, replace(question.facts, outlook=outlook))


def _choice_at(outlook: SystemState, wanted: Route | None, question: Question) -> RouteChoice:
    facts = replace(question.facts, outlook=outlook)
    return choose(wanted, question.budget, question.options, facts, question.defaults)


def merit(choice: RouteChoice, budget: Budget) -> tuple[bool, float]:
    """By which the least is the best: what keeps the budget first, then what is soonest."""
    ttft_ms = 0.0 if choice.forecast is None else choice.forecast.ttft_ms
    is_late = budget.max_ttft_ms is not None and ttft_ms > budget.max_ttft_ms
    return is_late or choice.reason is Reason.BUDGET_NOT_MET, ttft_ms


def _whole_ms(outlook: SystemState, facts: Facts) -> float:
    wait_ms = outlook.load.target_ms + outlook.kv_wait_ms(facts.prompt_tokens + facts.max_new_tokens)
    return wait_ms + outlook.speeds.target.ms(rest(facts.prompt_tokens, outlook.cached_tokens))


def _predicted(choice: RouteChoice, facts: Facts, outlooks: Mapping[str, SystemState]) -> dict[str, float]:
    """The milliseconds to the first token of this choice at each replica."""
    works: dict[object, RouteWork] = {}  # the same wherever the same is held, and most replicas hold nothing
    found = {}
    for replica, outlook in outlooks.items():
        held = outlook.cached_tokens, outlook.compressed, outlook.entries
        if held not in works:
            works[held] = work_of(choice, facts.prompt_tokens, outlook)
        found[replica] = outlook.forecast(works[held], facts.max_new_tokens).ttft_ms
    return found
