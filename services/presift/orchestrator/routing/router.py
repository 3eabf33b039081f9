"""Routing: facts in, route and reason out. Pure. A named route here and in `kv_routing`, AUTO in `auto`.

A route that the quality guard has switched off is taken only where nothing else can be.
"""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong, RouteUnsupported
from presift.core.plan import Route
from presift.orchestrator.domain.request import Budget, KvOptions
from presift.orchestrator.routing.auto import choose_auto
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.choice import (
    Defaults,
    Facts,
    Reason,
    RouteChoice,
    check_answer_fits,
    full,
    given,
    spec_pc,
)
from presift.orchestrator.routing.forecast import with_forecast
from presift.orchestrator.routing.kv_routes import choose_kv


def choose(wanted: Route | None, budget: Budget, options: KvOptions, facts: Facts, defaults: Defaults) -> RouteChoice:
    """The route for one request; `wanted` None is AUTO.

    Raises RouteUnsupported, PromptTooLong (nothing can make it fit), InvalidRequest (a budget below the window), or
    BudgetExceeded (only if strict).
    """
    check_served(wanted, facts)
    return _passing(wanted, Question(budget, options, facts, defaults))


def avoided(chosen: RouteChoice, wanted: Route | None, question: Question) -> RouteChoice | None:
    """What would have been chosen instead, if that is a route that is off."""
    try:
        would = _plain(wanted, replace(question, facts=replace(question.facts, off={})))
    except PresiftError:
        return None
    return would if would.route in question.facts.off and would.route is not chosen.route else None


def _passing(wanted: Route | None, question: Question) -> RouteChoice:
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


def _in_full(instead_of: Route, question: Question) -> RouteChoice:
    why = f"{instead_of} {question.facts.off[instead_of]}; so full"
    choice = full(question.budget, question.facts, Reason.ROUTE_SWITCHED_OFF, why)
    return with_forecast(choice, question.budget, question.facts)


def _plain(wanted: Route | None, question: Question) -> RouteChoice:
    return with_forecast(_choose(wanted, question), question.budget, question.facts)


def _choose(wanted: Route | None, question: Question) -> RouteChoice:
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
    check_answer_fits(facts)
