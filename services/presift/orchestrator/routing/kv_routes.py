"""Routing of spec_kv and spec_kv_pc, and of the later turns of a conversation. Pure.

On spec_kv the target reads the whole prompt and then holds C KV tokens and the final prompt token; spec_kv_pc
compresses the prompt first. `budget.max_kv_tokens` is what the prompt holds while decoding, so C is one less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from presift.core.errors import BudgetExceeded, InvalidRequest
from presift.core.kv_plan import KvPlan, scoring_slots
from presift.core.plan import Route
from presift.core.policies import KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.orchestrator.domain.request import AutoCapacity, Budget, KvOptions
from presift.orchestrator.routing.adaptive_capacity import Bounds, adaptive_of, measured_at, most_tokens, up_to
from presift.orchestrator.routing.choice import (
    Defaults,
    Facts,
    Reason,
    RouteChoice,
    check_fits,
    full,
    given,
    prompt_policy,
    protected_over_budget,
)


def choose_kv(wanted: Route, budget: Budget, options: KvOptions, facts: Facts, defaults: Defaults) -> RouteChoice:
    """The route for a request above the threshold that named spec_kv or spec_kv_pc. Raises as `routing.choose`."""
    selection, auto = options.selection or defaults.spec_kv.selection, budget.auto(defaults.auto_capacity)
    case = _Case(budget, options, facts, defaults, selection, auto)
    if wanted is Route.SPEC_KV_PC:
        return _spec_kv_pc(case, "asked for")
    tokens, limit = facts.prompt_tokens, budget.max_prompt_tokens
    if limit is None or tokens <= limit:
        return _spec_kv(case, "asked for")
    over = f"spec_kv reads all {tokens} prompt tokens, over the budget of {limit}"
    if budget.strict:
        raise BudgetExceeded("budget.max_prompt_tokens", tokens, f"<= {limit} tokens", f"strict budget not met: {over}")
    # The draft's own KV mask is drawn from the whole prompt: it cannot follow a compressed one.
    if Route.SPEC_KV_PC in facts.supported and options.selection is not KvSelection.DRAFT_MASK:
        return _spec_kv_pc(case, f"{over}, so the prompt is compressed first")
    return _spec_kv(case, over)


def continue_kv(plan: KvPlan, budget: Budget, options: KvOptions, facts: Facts) -> RouteChoice:
    """The choice for a later turn that goes on with `plan`. Raises PromptTooLong, BudgetExceeded (only if strict)."""
    check_fits(facts)
    detail = f"goes on with the selection of {plan.prompt_tokens} tokens"
    read, held = facts.prompt_tokens, plan.held_tokens(facts.prompt_tokens)
    limits = {
        "max_prompt_tokens": (read, budget.max_prompt_tokens),
        "max_kv_tokens": (held, budget.max_kv_tokens),
    }
    for name, (value, limit) in limits.items():
        if limit is not None and value > limit:
            detail = f"{detail}; over {name} ({value} of {limit})"
            if budget.strict:
                raise BudgetExceeded(f"budget.{name}", value, f"<= {limit} tokens", f"strict budget not met: {detail}")
    keep = plan.keep_full_prefix if options.keep_full_prefix is None else options.keep_full_prefix
    return RouteChoice(Route.SPEC_KV, Reason.REQUESTED, detail, plan.policy, keep, continued_tokens=held)


@dataclass(frozen=True, slots=True)
class _Case:
    """One request that is to drop KV."""

    budget: Budget
    options: KvOptions
    facts: Facts
    defaults: Defaults
    selection: KvSelection
    auto: AutoCapacity | None

    @property
    def kv_limit(self) -> int:
        """The KV tokens that the prompt may hold while it decodes."""
        return most_tokens(self.auto, self.budget.max_kv_tokens, self.defaults.spec_kv.capacity + 1)

    def policy(self, read_tokens: int) -> SpecKv:
        """SpecKV at this budget, in whole pages, for so many tokens read. Raises InvalidRequest below the window."""
        page, template = self.facts.kv_page_tokens, self.defaults.spec_kv
        capacity = (self.kv_limit - 1) // page * page
        if capacity <= template.window:
            least = (template.window // page + 1) * page + 1
            limit = f">= {least} tokens (more than the window of {template.window}, and the final token)"
            is_auto = self.auto is not None and self.auto.max_tokens == self.kv_limit != self.budget.max_kv_tokens
            field = "auto_capacity.max_tokens" if is_auto else "max_kv_tokens"
            raise InvalidRequest(f"budget.{field}", self.kv_limit, limit)
        # The target reads the lookahead too, and one token is left to be generated.
        space = max(0, self.facts.context_tokens - read_tokens - 2)
        wanted = min(given(self.options.lookahead_tokens, template.lookahead_tokens), space)
        is_mask = self.selection is KvSelection.DRAFT_MASK
        bounds = Bounds(capacity, template.window + 1, self.facts.must_keep_kv, page)
        adaptive = adaptive_of(self.auto, bounds, 1)
        if adaptive is None and not is_mask and self.budget.min_coverage is not None:
            adaptive = measured_at(capacity, page)
        return replace(
            template,
            capacity=capacity,
            selection=self.selection,
            lookahead_tokens=0 if is_mask else wanted,  # with a mask nobody reads a lookahead
            mask=self.defaults.spec_pc if is_mask or adaptive is not None else None,
            adaptive=adaptive,
        )

    def keep_full_prefix(self, route: Route) -> bool:
        """As asked for; else only where the next question on the same document reads the same tokens."""
        wanted = self.options.keep_full_prefix
        return route is Route.SPEC_KV if wanted is None else wanted


def _spec_kv(case: _Case, why: str) -> RouteChoice:
    facts = case.facts
    if facts.prompt_tokens <= case.kv_limit:
        detail = f"{why}; {facts.prompt_tokens} prompt tokens fit {case.kv_limit} KV tokens"
        return full(case.budget, facts, Reason.WITHIN_BUDGET, detail)
    check_fits(facts)
    policy = case.policy(facts.prompt_tokens)
    if facts.must_keep_kv > policy.capacity:
        return protected_over_budget(case.budget, facts, facts.must_keep_kv, policy.capacity)
    if too_large := _over_the_pool(facts, facts.prompt_tokens, policy):
        return full(case.budget, facts, Reason.KV_POOL_TOO_SMALL, f"{why}; {too_large}")
    detail = f"{why}, at {up_to(policy)}{policy.capacity} KV tokens and the final one"
    return RouteChoice(Route.SPEC_KV, Reason.REQUESTED, detail, policy, case.keep_full_prefix(Route.SPEC_KV))


def _over_the_pool(facts: Facts, read_tokens: int, policy: SpecKv) -> str:
    """Why the target has no room to score so many tokens; empty if it has, or does not say."""
    needed = scoring_slots(read_tokens + policy.lookahead_tokens, policy.capacity, facts.kv_page_tokens)
    if not facts.kv_pool_tokens or needed < facts.kv_pool_tokens:
        return ""
    return f"selecting KV takes {needed} slots, the target's pool has {facts.kv_pool_tokens}"


def _spec_kv_pc(case: _Case, why: str) -> RouteChoice:
    # The caller's bounds are of what is read; of the KV those hold that there are without.
    auto, kv_auto = case.auto, None if case.auto is None else replace(case.auto, min_tokens=None, max_tokens=None)
    case = replace(case, selection=KvSelection.TARGET_LOOKAHEAD, auto=kv_auto)
    facts = case.facts
    capacity = min(most_tokens(auto, case.budget.max_prompt_tokens, case.defaults.cascade_capacity), facts.room)
    if facts.prompt_tokens <= min(case.kv_limit, facts.room, given(case.budget.max_prompt_tokens, case.kv_limit)):
        return _spec_kv(case, why)
    if facts.prompt_tokens <= capacity:
        return _spec_kv(case, f"{why}; all {facts.prompt_tokens} prompt tokens fit {capacity}")
    return _cascade(case, why, prompt_policy(capacity, auto, facts, case.defaults.spec_pc))


def _cascade(case: _Case, why: str, prompt: SpecPc) -> RouteChoice:
    """Both stages, for a prompt that is longer than the first one keeps."""
    facts, capacity = case.facts, prompt.capacity
    if facts.must_keep > capacity:
        return protected_over_budget(case.budget, facts, facts.must_keep, capacity)
    if capacity <= case.kv_limit:
        detail = f"{why}, at {up_to(prompt)}{capacity} tokens: their KV fits {case.kv_limit}, so none is dropped"
        return RouteChoice(Route.SPEC_PC, Reason.REQUESTED, detail, prompt)
    kv = replace(case.policy(capacity), mask=None)  # the draft counts by the first stage's
    if facts.must_keep_kv > kv.capacity:
        return protected_over_budget(case.budget, facts, facts.must_keep_kv, kv.capacity)
    if too_large := _over_the_pool(facts, capacity, kv):
        return full(case.budget, facts, Reason.KV_POOL_TOO_SMALL, f"{why}; {too_large}")
    most = up_to(prompt)
    detail = f"{why}, at {most}{capacity} prompt tokens, then {most}{kv.capacity} KV tokens and the final one"
    keep = case.keep_full_prefix(Route.SPEC_KV_PC)
    return RouteChoice(Route.SPEC_KV_PC, Reason.REQUESTED, detail, SpecKvPc(prompt, kv), keep)
