"""Routing: facts in, route and reason out. Pure. A named route here and in `kv_routing`, AUTO in `auto`.

A route that the quality guard has switched off is taken only where nothing else can be.
Where a target has replicas, each has an outlook of its own, and one of them is chosen with the route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from presift.core.errors import (
    BudgetExceeded,
    InternalError,
    InvalidRequest,
    PresiftError,
    PromptTooLong,
    RouteUnsupported,
)
from presift.core.plan import Route
from presift.orchestrator.auto import choose_auto
from presift.orchestrator.candidates import Question
from presift.orchestrator.choices import Choice, Defaults, Facts, Reason, full, given, spec_pc
from presift.orchestrator.costs import Outlook
from presift.orchestrator.forecasting import rest, with_forecast, work_of
from presift.orchestrator.kv_routing import choose_kv
from presift.orchestrator.request import Budget, KvOptions


def choose(wanted: Route | None, budget: Budget, options: KvOptions, facts: Facts, defaults: Defaults) -> Choice:
    """The route for one request; `wanted` None is AUTO.

    Raises RouteUnsupported, PromptTooLong (nothing can make it fit), InvalidRequest (a budget below the window), or
    BudgetExceeded (only if strict).
    """
    check_served(wanted, facts)
    return _passing(wanted, Question(budget, options, facts, defaults))


def avoided(chosen: Choice, wanted: Route | None, question: Question) -> Choice | None:
    """What would have been chosen instead, if that is a route that is off."""
    try:
        would = _plain(wanted, replace(question, facts=replace(question.facts, off={})))
    except PresiftError:
        return None
    return would if would.route in question.facts.off and would.route is not chosen.route else None


def _passing(wanted: Route | None, question: Question) -> Choice:
    """Past the routes that are off."""
    off = question.facts.off
    if not off:
        return _plain(wanted, question)
    try:
        choice = _plain(wanted, question)
    except (InvalidRequest, BudgetExceeded):  # a budget, say, for which only what is off is not too coarse
        choice = _plain(wanted, replace(question, facts=replace(question.facts, off={})))
    if choice.route not in off:
        return choice
    try:
        return _in_full(choice.route, question)
    except (PromptTooLong, BudgetExceeded) as error:  # there is no way past
        detail = f"{choice.detail}; although {choice.route} {off[choice.route]}, as otherwise: {error.message}"
        return replace(choice, detail=detail)


def _in_full(instead_of: Route, question: Question) -> Choice:
    why = f"{instead_of} {question.facts.off[instead_of]}; so full"
    choice = full(question.budget, question.facts, Reason.ROUTE_SWITCHED_OFF, why)
    return with_forecast(choice, question.budget, question.facts)


def _plain(wanted: Route | None, question: Question) -> Choice:
    return with_forecast(_choose(wanted, question), question.budget, question.facts)


def _choose(wanted: Route | None, question: Question) -> Choice:
    budget, facts, defaults = question.budget, question.facts, question.defaults
    if wanted is Route.FULL:
        return full(budget, facts, Reason.REQUESTED, "asked for")
    threshold = given(budget.compress_above_tokens, defaults.compress_above_tokens)
    if facts.prompt_tokens <= min(threshold, facts.room):
        return full(
            budget, facts, Reason.BELOW_THRESHOLD, f"{facts.prompt_tokens} prompt tokens, compressed above {threshold}"
        )
    if wanted is None:
        return choose_auto(question)
    if wanted is Route.SPEC_PC:
        return spec_pc(budget, facts, defaults)
    return choose_kv(wanted, budget, question.options, facts, defaults)


def check_served(wanted: Route | None, facts: Facts) -> None:
    """Raise RouteUnsupported, with the target's reason, or PromptTooLong where the answer alone fills the context."""
    if wanted is not None and wanted not in facts.supported:
        served = ", ".join(sorted(facts.supported))
        why = f" ({facts.unsupported[wanted]})" if wanted in facts.unsupported else ""
        raise RouteUnsupported(
            "route", wanted, f"one of {served}", f"route {wanted} is not served here{why}; served: {served}"
        )
    if facts.room < 1:
        raise PromptTooLong("sampling.max_new_tokens", facts.max_new_tokens, f"< {facts.context_tokens} (the context)")


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a request goes, what it gets there, and what was weighed against it, by replica."""

    replica: str
    choice: Choice
    weighed: Mapping[str, Choice]


def choose_among(wanted: Route | None, question: Question, outlooks: Mapping[str, Outlook]) -> Placed:
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
        return Placed(first, weighed, {first: weighed})
    soonest = min(order, key=lambda replica: (_ms(weighed, facts, outlooks[replica]), replica))
    found = {first: weighed}
    if soonest != first:
        found[soonest] = _elsewhere(weighed, wanted, question, outlooks[soonest])
    best = min(found, key=lambda replica: (_merit(found[replica], question.budget), replica))
    return Placed(best, found[best], found)


def _first(wanted: Route | None, question: Question, outlooks: Mapping[str, Outlook]) -> tuple[str, Choice]:
    """The first replica that does not refuse, and what the request gets there. Raises the first refusal."""
    refusal: PresiftError | None = None
    for replica, outlook in outlooks.items():
        try:
            return replica, _choice_at(outlook, wanted, question)
        except PresiftError as error:
            refusal = refusal or error
    raise refusal or InternalError("no replica to choose among")


def _elsewhere(choice: Choice, wanted: Route | None, question: Question, outlook: Outlook) -> Choice:
    """What a compressing choice becomes where it is soonest.

    There the whole prompt takes longer and the choice less time, so that only a limit on time could change it.
    """
    if question.budget.max_ttft_ms is not None:
        return _choice_at(outlook, wanted, question)
    return with_forecast(choice, question.budget, replace(question.facts, outlook=outlook))


def _choice_at(outlook: Outlook, wanted: Route | None, question: Question) -> Choice:
    facts = replace(question.facts, outlook=outlook)
    return choose(wanted, question.budget, question.options, facts, question.defaults)


def _merit(choice: Choice, budget: Budget) -> tuple[bool, float]:
    """The least is the best: what keeps the budget first, then what is soonest."""
    ttft_ms = 0.0 if choice.forecast is None else choice.forecast.ttft_ms
    is_late = budget.max_ttft_ms is not None and ttft_ms > budget.max_ttft_ms
    return is_late or choice.reason is Reason.BUDGET_NOT_MET, ttft_ms


def _whole_ms(outlook: Outlook, facts: Facts) -> float:
    wait_ms = outlook.load.target_ms + outlook.kv_wait_ms(facts.prompt_tokens + facts.max_new_tokens)
    return wait_ms + outlook.speeds.target.ms(rest(facts.prompt_tokens, outlook.cached_tokens))


def _ms(choice: Choice, facts: Facts, outlook: Outlook) -> float:
    return outlook.forecast(work_of(choice, facts.prompt_tokens, outlook), facts.max_new_tokens).ttft_ms
