"""Routing: facts in, route and reason out. Pure. A named route or AUTO by length; costs and quality come later."""

from __future__ import annotations

from presift.core.errors import PromptTooLong, RouteUnsupported
from presift.core.plan import Route
from presift.core.policies import SpecPc
from presift.orchestrator.choices import (
    Choice,
    Defaults,
    Facts,
    Reason,
    full,
    given,
    prompt_policy,
    protected_over_budget,
)
from presift.orchestrator.kv_routing import choose_kv
from presift.orchestrator.request import Budget, KvOptions


def choose(wanted: Route | None, budget: Budget, options: KvOptions, facts: Facts, defaults: Defaults) -> Choice:
    """The route for one request; `wanted` None is AUTO.

    Raises RouteUnsupported, PromptTooLong (nothing can make it fit), InvalidRequest (a budget below the window), or
    BudgetExceeded (only if strict).
    """
    check_served(wanted, facts)
    if wanted is Route.FULL or (wanted is None and Route.SPEC_PC not in facts.supported):
        return _full_as_named(wanted, budget, facts)
    threshold = given(budget.compress_above_tokens, defaults.compress_above_tokens)
    if facts.prompt_tokens <= min(threshold, facts.room):
        return full(
            budget, facts, Reason.BELOW_THRESHOLD, f"{facts.prompt_tokens} prompt tokens, compressed above {threshold}"
        )
    if wanted in (Route.SPEC_KV, Route.SPEC_KV_PC):
        return choose_kv(wanted, budget, options, facts, defaults)
    return _spec_pc(wanted, budget, facts, defaults.spec_pc)


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


def _spec_pc(wanted: Route | None, budget: Budget, facts: Facts, template: SpecPc) -> Choice:
    capacity = min(given(budget.capacity, template.capacity), facts.room)
    if facts.prompt_tokens <= capacity:
        return Choice(Route.FULL, Reason.WITHIN_BUDGET, f"{facts.prompt_tokens} prompt tokens fit {capacity}")
    policy = prompt_policy(capacity, facts, template)
    if facts.must_keep > capacity:
        return protected_over_budget(budget, facts, facts.must_keep, capacity)
    if wanted is Route.SPEC_PC:
        return Choice(Route.SPEC_PC, Reason.REQUESTED, f"asked for, at {capacity} tokens", policy)
    detail = f"{facts.prompt_tokens} prompt tokens exceed {capacity}"
    return Choice(Route.SPEC_PC, Reason.OVER_BUDGET, detail, policy)


def _full_as_named(wanted: Route | None, budget: Budget, facts: Facts) -> Choice:
    if wanted is Route.FULL:
        return full(budget, facts, Reason.REQUESTED, "asked for")
    return full(budget, facts, Reason.WITHIN_BUDGET, "no compressing route is served here")
