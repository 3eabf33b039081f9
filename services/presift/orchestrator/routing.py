"""Routing: facts in, route and reason out. Pure. A named route or AUTO by length; costs and quality come later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from presift.core.errors import BudgetExceeded, InvalidRequest, PromptTooLong, RouteUnsupported
from presift.core.plan import Route
from presift.core.policies import SpecPc
from presift.orchestrator.request import Budget


class Reason(StrEnum):
    """Why a route was taken: the names of presift.v1.DecisionReason."""

    REQUESTED = "requested"
    BELOW_THRESHOLD = "below_threshold"
    WITHIN_BUDGET = "within_budget"
    OVER_BUDGET = "over_budget"
    PROTECTED_OVER_BUDGET = "protected_over_budget"
    DRAFT_UNAVAILABLE = "draft_unavailable"
    DRAFT_OVERLOADED = "draft_overloaded"
    DRAFT_TIMEOUT = "draft_timeout"
    DRAFT_CHANGED = "draft_changed"
    MASK_REJECTED = "mask_rejected"


@dataclass(frozen=True, slots=True)
class Choice:
    """A route, why, the reason in words, and the policy where one applies."""

    route: Route
    reason: Reason
    detail: str
    policy: SpecPc | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a choice rests on; all in tokens. `must_keep` counts protected spans and window together."""

    prompt_tokens: int
    must_keep: int
    max_new_tokens: int
    context_tokens: int
    supported: frozenset[Route]

    @property
    def room(self) -> int:
        """The longest prompt that leaves room for the answer."""
        return self.context_tokens - self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies where the caller says nothing. `spec_pc.capacity` is the default budget; `start_layer` None is the
    draft's middle layer (the first half attends to form more than to meaning)."""

    spec_pc: SpecPc
    compress_above_tokens: int = 4096
    start_layer: int | None = None

    def for_draft(self, policy: SpecPc, draft_layers: int) -> SpecPc:
        """The policy as this draft will score it."""
        start_layer = draft_layers // 2 if self.start_layer is None else self.start_layer
        return replace(policy, start_layer=start_layer)


def choose(wanted: Route | None, budget: Budget, facts: Facts, defaults: Defaults) -> Choice:
    """The route for one request; `wanted` None is AUTO.

    Raises RouteUnsupported, PromptTooLong (nothing can make it fit), InvalidRequest (a budget below the window), or
    BudgetExceeded (only if strict).
    """
    if wanted is not None and wanted not in facts.supported:
        served = ", ".join(sorted(facts.supported))
        raise RouteUnsupported(
            "route", wanted, f"one of {served}", f"route {wanted} is not served here; served: {served}"
        )
    if facts.room < 1:
        raise PromptTooLong("sampling.max_new_tokens", facts.max_new_tokens, f"< {facts.context_tokens} (the context)")
    fits = facts.prompt_tokens <= facts.room
    if wanted is Route.FULL or Route.SPEC_PC not in facts.supported:
        return _full_as_named(wanted, budget, facts)
    threshold = _or(budget.compress_above_tokens, defaults.compress_above_tokens)
    if fits and facts.prompt_tokens <= threshold:
        return _full(
            budget, facts, Reason.BELOW_THRESHOLD, f"{facts.prompt_tokens} prompt tokens, compressed above {threshold}"
        )
    return _compressed(wanted, budget, facts, defaults.spec_pc)


def _compressed(wanted: Route | None, budget: Budget, facts: Facts, template: SpecPc) -> Choice:
    capacity = min(_or(budget.capacity, template.capacity), facts.room)
    if facts.prompt_tokens <= capacity:
        return Choice(Route.FULL, Reason.WITHIN_BUDGET, f"{facts.prompt_tokens} prompt tokens fit {capacity}")
    if capacity < template.window:
        if facts.room < template.window:
            check_fits(facts)
        raise InvalidRequest("budget", capacity, f">= {template.window} tokens (the window)")
    policy = replace(template, capacity=capacity)
    if facts.must_keep > capacity:
        detail = f"protected spans and window need {facts.must_keep} tokens, the budget is {capacity}"
        return _full(budget, facts, Reason.PROTECTED_OVER_BUDGET, detail)
    if wanted is Route.SPEC_PC:
        return Choice(Route.SPEC_PC, Reason.REQUESTED, f"asked for, at {capacity} tokens", policy)
    detail = f"{facts.prompt_tokens} prompt tokens exceed {capacity}"
    return Choice(Route.SPEC_PC, Reason.OVER_BUDGET, detail, policy)


def _full_as_named(wanted: Route | None, budget: Budget, facts: Facts) -> Choice:
    if wanted is Route.FULL:
        return _full(budget, facts, Reason.REQUESTED, "asked for")
    return _full(budget, facts, Reason.WITHIN_BUDGET, "no compressing route is served here")


def _full(budget: Budget, facts: Facts, reason: Reason, detail: str) -> Choice:
    check_fits(facts)
    limit = budget.capacity
    if limit is not None and facts.prompt_tokens > limit:
        detail = f"{detail}; over the budget of {limit} tokens"
        if budget.strict:
            raise BudgetExceeded(
                "budget", facts.prompt_tokens, f"<= {limit} tokens", f"strict budget not met: {detail}"
            )
    return Choice(Route.FULL, reason, detail)


def check_fits(facts: Facts) -> None:
    """Raise PromptTooLong unless the whole prompt and the answer fit the target's context."""
    if facts.prompt_tokens > facts.room:
        limit = f"<= {facts.room} (context {facts.context_tokens} less max_new_tokens {facts.max_new_tokens})"
        raise PromptTooLong("prompt", f"{facts.prompt_tokens} tokens", limit)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
