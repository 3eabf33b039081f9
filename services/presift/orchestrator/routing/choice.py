"""Choices: what the choice of a route rests on and what comes of it. Pure values; `routing` and `kv_routing` choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from presift.core.errors import BudgetExceeded, InvalidRequest, PromptTooLong
from presift.core.plan import Route
from presift.core.policies import Policy, SpecKv, SpecPc
from presift.orchestrator.domain.request import AutoCapacity, Budget
from presift.orchestrator.routing.adaptive_capacity import Bounds, adaptive_of, most_tokens, up_to
from presift.orchestrator.routing.cost_model import Forecast, SystemState

# AUTO's, the least lossy first.
ROUTE_ORDER = (Route.FULL, Route.SPEC_KV, Route.SPEC_KV_PC, Route.SPEC_PC)


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
    CHEAPEST = "cheapest"
    BUDGET_NOT_MET = "budget_not_met"
    COVERAGE_TOO_LOW = "coverage_too_low"
    KV_POOL_TOO_SMALL = "kv_pool_too_small"
    ROUTE_SWITCHED_OFF = "route_switched_off"


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """A route, why, the reason in words, the policy where one applies, what becomes of the full prefix where KV is
    dropped, and what it is predicted to cost. `continued_tokens`: of a later turn, what it holds while it decodes."""

    route: Route
    reason: Reason
    detail: str
    policy: Policy | None = None
    keep_full_prefix: bool | None = None
    forecast: Forecast | None = None
    continued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a choice rests on; all in tokens. `must_keep` counts protected spans and window of SpecPC together;
    `must_keep_kv` those of SpecKV, without the final token. `unsupported`: why the target does not serve a route.
    `kv_pool_tokens` 0 is unknown. `outlook`: what costs are predicted from. `off`: the routes that the quality guard
    has switched off for prompts of this length, and why. `draft_context_tokens`: what the draft reads at most, 0 where
    that is unknown or counts other tokens."""

    prompt_tokens: int
    must_keep: int
    must_keep_kv: int
    max_new_tokens: int
    context_tokens: int
    supported: frozenset[Route]
    unsupported: Mapping[Route, str] = field(default_factory=dict)
    kv_page_tokens: int = 1
    outlook: SystemState = SystemState()  # noqa: RUF009 (frozen)
    kv_pool_tokens: int = 0
    off: Mapping[Route, str] = field(default_factory=dict)
    draft_context_tokens: int = 0

    @property
    def room(self) -> int:
        """The longest prompt that leaves room for the answer."""
        return self.context_tokens - self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies where the caller says nothing.

    `spec_pc.capacity` and `spec_kv.capacity` are the default budgets, `cascade_capacity` that of the prompt stage of
    spec_kv_pc. `start_layer` None is the draft's middle layer (the first half attends to form more than to meaning).
    `route_order`: the routes that AUTO may take, the least lossy first. `auto_capacity`: how capacities adapt. Raises
    InvalidRequest.
    """

    spec_pc: SpecPc
    compress_above_tokens: int = 4096
    start_layer: int | None = None
    spec_kv: SpecKv = field(default_factory=lambda: SpecKv(capacity=512))
    cascade_capacity: int = 2048
    route_order: tuple[Route, ...] = ROUTE_ORDER
    auto_capacity: AutoCapacity | None = None

    def __post_init__(self) -> None:
        if len(set(self.route_order)) < len(self.route_order) or Route.FULL not in self.route_order:
            raise InvalidRequest("route_order", ", ".join(self.route_order), "each route once, full among them")

    def for_draft(self, policy: Policy, draft_layers: int) -> Policy:
        """The policy as this draft will score it."""
        start_layer = draft_layers // 2 if self.start_layer is None else self.start_layer
        return policy.with_start_layer(start_layer)


def full(budget: Budget, facts: Facts, reason: Reason, detail: str) -> RouteChoice:
    """Route full. Raises PromptTooLong, or BudgetExceeded where `strict` forbids it."""
    check_fits(facts)
    limit = budget.capacity
    if limit is not None and facts.prompt_tokens > limit:
        detail = f"{detail}; over the budget of {limit} tokens"
        if budget.strict:
            raise BudgetExceeded(
                "budget", facts.prompt_tokens, f"<= {limit} tokens", f"strict budget not met: {detail}"
            )
    return RouteChoice(Route.FULL, reason, detail)


def protected_over_budget(budget: Budget, facts: Facts, needed: int, capacity: int) -> RouteChoice:
    """Route full, because what may not be dropped is more than the capacity."""
    detail = f"protected spans and window need {needed} tokens, the budget is {capacity}"
    return full(budget, facts, Reason.PROTECTED_OVER_BUDGET, detail)


def spec_pc(budget: Budget, facts: Facts, defaults: Defaults) -> RouteChoice:
    """SpecPC at this budget; full where the prompt fits it, or what must be kept does not."""
    auto = budget.auto(defaults.auto_capacity)
    capacity = min(most_tokens(auto, budget.capacity, defaults.spec_pc.capacity), facts.room)
    if facts.prompt_tokens <= capacity:
        return RouteChoice(Route.FULL, Reason.WITHIN_BUDGET, f"{facts.prompt_tokens} prompt tokens fit {capacity}")
    policy = prompt_policy(capacity, auto, facts, defaults.spec_pc)
    if facts.must_keep > capacity:
        return protected_over_budget(budget, facts, facts.must_keep, capacity)
    return RouteChoice(Route.SPEC_PC, Reason.REQUESTED, f"asked for, at {up_to(policy)}{capacity} tokens", policy)


def prompt_policy(capacity: int, auto: AutoCapacity | None, facts: Facts, template: SpecPc) -> SpecPc:
    """SpecPC at this capacity, or up to it. Raises InvalidRequest, or PromptTooLong, where the window does not fit."""
    if capacity < template.window:
        if facts.room < template.window:
            check_fits(facts)
        raise InvalidRequest("budget", capacity, f">= {template.window} tokens (the window)")
    adaptive = adaptive_of(auto, Bounds(capacity, template.window, facts.must_keep))
    return replace(template, capacity=capacity, adaptive=adaptive)


def check_fits(facts: Facts) -> None:
    """Raise PromptTooLong unless the whole prompt and the answer fit the target's context."""
    check_answer_fits(facts)
    if facts.prompt_tokens > facts.room:
        limit = f"<= {facts.room} (context {facts.context_tokens} less max_new_tokens {facts.max_new_tokens})"
        raise PromptTooLong("prompt", f"{facts.prompt_tokens} tokens", limit)


def check_answer_fits(facts: Facts) -> None:
    """Raise PromptTooLong where the answer alone fills the target's context."""
    if facts.room < 1:
        answer, context = facts.max_new_tokens, facts.context_tokens
        limit = f"< {context} (the context)"
        both = f"{facts.prompt_tokens} prompt tokens and sampling.max_new_tokens {answer}"
        message = f"{both} do not fit the context of {context} tokens: the answer alone would fill it"
        raise PromptTooLong("sampling.max_new_tokens", answer, limit, message)


def given(value: int | None, default: int) -> int:
    """The caller's value, or the default."""
    return default if value is None else value
