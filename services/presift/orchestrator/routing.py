"""Routing: facts in, route and reason out. Pure. A named route here and in `kv_routing`, AUTO in `auto`."""

from __future__ import annotations

from presift.core.errors import PromptTooLong, RouteUnsupported
from presift.core.plan import Route
from presift.orchestrator.auto import choose_auto
from presift.orchestrator.candidates import Question
from presift.orchestrator.choices import Choice, Defaults, Facts, Reason, full, given, spec_pc
from presift.orchestrator.forecasting import with_forecast
from presift.orchestrator.kv_routing import choose_kv
from presift.orchestrator.request import Budget, KvOptions


def choose(wanted: Route | None, budget: Budget, options: KvOptions, facts: Facts, defaults: Defaults) -> Choice:
    """The route for one request; `wanted` None is AUTO.

    Raises RouteUnsupported, PromptTooLong (nothing can make it fit), InvalidRequest (a budget below the window), or
    BudgetExceeded (only if strict).
    """
    check_served(wanted, facts)
    return with_forecast(_choose(wanted, Question(budget, options, facts, defaults)), budget, facts)


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
