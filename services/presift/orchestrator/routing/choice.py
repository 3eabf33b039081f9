"""The values that routing works with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from presift.core.errors import InvalidRequest
from presift.core.plan import ModelInfo, Route
from presift.core.policies import KvSelection, Policy, SpecKv, SpecPc
from presift.orchestrator.domain.request import AutoCapacity, Budget, KvLookahead, KvOptions
from presift.orchestrator.routing.adaptive_capacity import most_tokens
from presift.orchestrator.routing.cost_model import Forecast, SystemState

# AUTO considers the routes in this order, the least lossy first.
ROUTE_ORDER = (Route.FULL, Route.SPEC_KV, Route.SPEC_KV_PC, Route.SPEC_PC)
# Below this capacity the lookahead finds more than calibrated heads alone (tests/bench/LOG.md).
LEAST_CALIBRATED = 512
# A tenth of the caller's time stays in reserve: the median error of predictions is as large (tests/bench/LOG.md).
_RESERVE = 10


class Reason(StrEnum):
    """Why a route was chosen; the names of presift.v1.DecisionReason."""

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
    DRAFT_CONTEXT_TOO_SMALL = "draft_context_too_small"
    ONLY_PROTECTED_KEPT = "only_protected_kept"


# Their details name the limit that is exceeded most.
OVER_A_LIMIT = frozenset({Reason.BUDGET_NOT_MET, Reason.PROTECTED_OVER_BUDGET})


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """A route and why it was chosen.

    `detail` is the reason in one short sentence. `policy` is None on route full. `keep_full_prefix` says whether the
    target keeps the KV of the whole prompt in its radix cache; None where no KV is dropped. `forecast` is the predicted
    cost. `continued_tokens` are the KV tokens that a later turn of a conversation holds while it decodes.
    """

    route: Route
    reason: Reason
    detail: str
    policy: Policy | None = None
    keep_full_prefix: bool | None = None
    forecast: Forecast | None = None
    continued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """The deployment's choices where the caller makes none. Raises InvalidRequest.

    `spec_pc.capacity` and `spec_kv.capacity` are the default budgets, `cascade_capacity` is that of the prompt stage of
    spec_kv_pc. `start_layer` None is the draft's middle layer: the first half attends to form more than to meaning.
    `calibrated` takes the place of `spec_pc` for capacities from LEAST_CALIBRATED on, if the draft has a head profile.
    `route_order` lists the routes that AUTO may choose, the least lossy first. `auto_capacity` says how capacities
    adapt, None if they do not. `lookahead`, `first_full_tokens` (of the target's lookahead), `renew_every` and
    `renew_window` apply to both routes that drop KV.
    """

    spec_pc: SpecPc
    compress_above_tokens: int = 4096
    start_layer: int | None = None
    spec_kv: SpecKv = field(default_factory=lambda: SpecKv(capacity=512))
    cascade_capacity: int = 2048
    route_order: tuple[Route, ...] = ROUTE_ORDER
    auto_capacity: AutoCapacity | None = None
    calibrated: SpecPc | None = None
    lookahead: KvLookahead = KvLookahead.DRAFT
    first_full_tokens: int = 16
    renew_every: int = 0
    renew_window: int = 32

    def __post_init__(self) -> None:
        if len(set(self.route_order)) < len(self.route_order) or Route.FULL not in self.route_order:
            raise InvalidRequest("route_order", ", ".join(self.route_order), "each route once, full among them")

    def for_draft(self, draft: ModelInfo | None) -> Defaults:
        """These defaults with the rows and heads that `draft` scores by; unchanged without a draft."""
        if draft is None:
            return self
        start_layer = draft.layers // 2 if self.start_layer is None else self.start_layer
        spec_pc = replace(self.spec_pc, start_layer=start_layer)
        calibrated = self.calibrated if draft.head_profile else None
        if not draft.can_look_ahead:
            spec_pc = replace(calibrated or spec_pc, lookahead_tokens=1)
            calibrated = None
        return replace(self, spec_pc=spec_pc, calibrated=calibrated)

    def scoring(self, capacity: int) -> SpecPc:
        """The template of a policy that keeps so many tokens."""
        return self.spec_pc if self.calibrated is None or capacity < LEAST_CALIBRATED else self.calibrated


@dataclass(frozen=True, slots=True)
class RoutingInputs:
    """Everything that the choice of a route depends on, for one request; counts in tokens.

    `wanted` is the caller's route, None for AUTO. `must_keep` counts the protected spans and the window of SpecPC,
    `must_keep_kv` those of SpecKV without the final token; `protected_kinds` as in TokenizedPrompt. `reserved_tokens`
    is the room kept for the answer, `least_new_tokens` the shortest answer that the request allows. `unsupported` says
    why the target does not serve a route. `beyond` are the routes that cannot do what the request asks, each with the
    refusal for a caller who names it. `kv_pool_tokens` 0 is unknown. `off` maps the routes that the quality guard has
    switched off for this length to the reason. `draft_context_tokens` is the longest prompt that the draft reads, 0 if
    unknown or in another vocabulary. `draft_looks_ahead`: whether a draft is connected that can generate a lookahead.
    `state` is the snapshot that costs are predicted from.
    """

    prompt_tokens: int
    must_keep: int
    must_keep_kv: int
    reserved_tokens: int
    context_tokens: int
    supported: frozenset[Route]
    defaults: Defaults
    wanted: Route | None = None
    budget: Budget = Budget()  # noqa: RUF009 (frozen)
    options: KvOptions = KvOptions()  # noqa: RUF009 (frozen)
    state: SystemState = SystemState()  # noqa: RUF009 (frozen)
    unsupported: Mapping[Route, str] = field(default_factory=dict)
    off: Mapping[Route, str] = field(default_factory=dict)
    beyond: Mapping[Route, InvalidRequest] = field(default_factory=dict)
    protected_kinds: tuple[tuple[str, int], ...] = ()
    kv_page_tokens: int = 1
    kv_pool_tokens: int = 0
    draft_context_tokens: int = 0
    draft_looks_ahead: bool = True
    least_new_tokens: int = 1

    def barred(self, route: Route) -> str:
        """Why this request may not have the route, in words; empty if it may."""
        return f"does not support {self.beyond[route].field}" if route in self.beyond else self.off.get(route, "")

    @property
    def selection(self) -> KvSelection:
        """Whose queries select KV on spec_kv. What the caller asks of the target's lookahead overrides the default."""
        default = self.defaults.spec_kv.selection
        if self.options.asks_target_lookahead:
            default = KvSelection.TARGET_LOOKAHEAD
        return self.options.selection or default

    @property
    def may_renew(self) -> bool:
        """Whether KV may be selected while the answer is generated. That needs the whole prompt in the target's
        cache."""
        return self.options.keep_full_prefix is not False

    @property
    def lookahead(self) -> KvLookahead:
        """Who makes the lookahead; AUTO if either may. It is the draft's wherever something else is asked of the
        draft, and where the answer may not begin on the full KV."""
        if not self.may_renew or self.auto_capacity is not None or self.budget.min_coverage is not None:
            return KvLookahead.DRAFT
        if self.budget.has_strict_kv_limit:
            return KvLookahead.DRAFT
        if self.options.asks_target_lookahead:
            return KvLookahead.TARGET
        if self.options.lookahead_tokens is not None or self.selection is KvSelection.DRAFT_MASK:
            return KvLookahead.DRAFT
        return self.options.lookahead or self.defaults.lookahead

    @property
    def lookahead_tokens(self) -> int:
        """How many tokens the draft's lookahead has, if it fits the target's context."""
        return value_or(self.options.lookahead_tokens, self.defaults.spec_kv.lookahead_tokens)

    @property
    def room(self) -> int:
        """The longest prompt that leaves room for the answer in the target's context."""
        return self.context_tokens - self.reserved_tokens

    @property
    def fits_shortest_answer(self) -> bool:
        """Whether the whole prompt and the shortest answer fit the target's context."""
        return self.prompt_tokens + self.least_new_tokens <= self.context_tokens

    @property
    def auto_capacity(self) -> AutoCapacity | None:
        """How capacities adapt for this request, None if they do not."""
        return self.budget.auto(self.defaults.auto_capacity)

    @property
    def compress_above_tokens(self) -> int:
        """Prompts of up to so many tokens are not compressed."""
        return value_or(self.budget.compress_above_tokens, self.defaults.compress_above_tokens)

    @property
    def limits(self) -> dict[str, int]:
        """The caller's limits by name, the time with a reserve for errors of prediction; else the default capacity."""
        budget = self.budget
        limits = {
            "max_prompt_tokens": budget.max_prompt_tokens,
            "max_kv_tokens": budget.max_kv_tokens,
            "max_ttft_ms": None if budget.max_ttft_ms is None else budget.max_ttft_ms - budget.max_ttft_ms // _RESERVE,
        }
        default = {"max_prompt_tokens": most_tokens(self.auto_capacity, None, self.defaults.spec_pc.capacity)}
        return {name: limit for name, limit in limits.items() if limit is not None} or default

    def limit_text(self, name: str, limit: int) -> str:
        """One of `limits` in words, with its origin."""
        asked = getattr(self.budget, name)
        if asked is None:
            auto = self.auto_capacity
            is_auto = auto is not None and auto.max_tokens == limit
            return f"{limit} ({'auto_capacity.max_tokens' if is_auto else 'the default capacity'})"
        return f"{limit} ({name})" if asked == limit else f"{limit} (nine tenths of {name} {asked})"


def with_clause(detail: str, clause: str) -> str:
    """The detail with this as its second clause, in the place of an earlier one: a detail is one short sentence."""
    first = detail.partition("; ")[0]
    return "; ".join(filter(None, (first, clause))) if clause else detail


def value_or(value: int | None, default: int) -> int:
    """The caller's value, or the default."""
    return default if value is None else value
