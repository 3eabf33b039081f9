"""The routes that drop KV, spec_kv and spec_kv_pc, and the later turns of a conversation. Pure.

Both are here because either may turn into the other, to keep a limit or because a stage drops nothing.

On spec_kv the target reads the whole prompt, then holds C KV tokens and the final prompt token; spec_kv_pc compresses
the prompt first. `budget.max_kv_tokens` counts all KV that the prompt holds while decoding, so C is one less.

With the target's lookahead the answer begins on the full KV, and spec_kv needs no draft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from presift.core.errors import BudgetExceeded, DraftUnavailable, InvalidRequest
from presift.core.kv_plan import KvPlan, scoring_slots
from presift.core.plan import Route
from presift.core.policies import KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.orchestrator.domain.request import AutoCapacity, KvLookahead
from presift.orchestrator.routing.adaptive_capacity import Bounds, adaptive_of, measured_at, most_tokens, up_to
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs, value_or, with_clause
from presift.orchestrator.routing.forecast import check_draft_reads, forecast
from presift.orchestrator.routing.full_route import (
    check_fits_reserved_answer,
    check_fits_shortest_answer,
    full,
    protected_over_budget,
)
from presift.orchestrator.routing.spec_pc_route import prompt_policy


def spec_kv(inputs: RoutingInputs) -> RouteChoice:
    """The route for a request that names spec_kv. Raises as `router.choose`."""
    return _by_lookahead(inputs, _spec_kv_or_cascade)


def spec_kv_pc(inputs: RoutingInputs) -> RouteChoice:
    """The route for a request that names spec_kv_pc. Raises as `router.choose`."""
    return _by_lookahead(inputs, _spec_kv_pc)


def without_draft(choice: RouteChoice, inputs: RoutingInputs) -> RouteChoice | None:
    """What becomes of a choice whose draft failed: the same with the target's lookahead; None if that is not possible
    or not allowed."""
    policy = choice.policy
    if policy is None or policy.kv_stage is None or policy.prompt_stage is not None:
        return None
    if inputs.lookahead is not KvLookahead.AUTO:
        return None
    found = _spec_kv(_sizing(inputs, KvLookahead.TARGET))
    return None if found.policy is None else replace(choice, policy=found.policy, keep_full_prefix=True, forecast=None)


def _by_lookahead(inputs: RoutingInputs, sized: Callable[[_Sizing], RouteChoice]) -> RouteChoice:
    """The choice with the lookahead that is asked for, or with the one by which the answer begins sooner."""
    if inputs.lookahead is not KvLookahead.AUTO:
        return sized(_sizing(inputs, inputs.lookahead))
    by_target = sized(_sizing(inputs, KvLookahead.TARGET))
    if not inputs.draft_looks_ahead:
        return by_target
    by_draft = sized(_sizing(inputs, KvLookahead.DRAFT))
    try:
        check_draft_reads(by_draft, inputs)
    except DraftUnavailable:
        return by_target
    if by_target.policy is None or by_draft.policy is None:
        return by_target
    is_sooner = forecast(by_target, inputs).ttft_ms < forecast(by_draft, inputs).ttft_ms
    return by_target if is_sooner else by_draft


def _spec_kv_or_cascade(sizing: _Sizing) -> RouteChoice:
    inputs = sizing.inputs
    tokens, limit = inputs.prompt_tokens, inputs.budget.max_prompt_tokens
    if limit is None or tokens <= limit:
        return _spec_kv(sizing)
    over = f"all {tokens} prompt tokens are over max_prompt_tokens {limit}"
    if inputs.budget.strict:
        raise BudgetExceeded("budget.max_prompt_tokens", tokens, f"<= {limit} tokens", f"strict budget not met: {over}")
    # The draft's KV mask is drawn from the whole prompt: it cannot be applied to a compressed one.
    if Route.SPEC_KV_PC in inputs.supported and inputs.options.selection is not KvSelection.DRAFT_MASK:
        return _spec_kv_pc(sizing, over)
    return _spec_kv(sizing, over)


def continue_kv(plan: KvPlan, inputs: RoutingInputs) -> RouteChoice:
    """The choice for a later turn that continues the selection of `plan`. Raises PromptTooLong or
    BudgetExceeded (only if strict)."""
    check_fits_shortest_answer(inputs)
    detail = f"continues the selection of {plan.prompt_tokens} tokens"
    budget, held = inputs.budget, plan.held_tokens(inputs.prompt_tokens)
    limits = {
        "max_prompt_tokens": (inputs.prompt_tokens, budget.max_prompt_tokens),
        "max_kv_tokens": (held, budget.max_kv_tokens),
    }
    for name, (value, limit) in limits.items():
        if limit is not None and value > limit:
            detail = with_clause(detail, f"over {name} ({value} of {limit})")
            if budget.strict:
                raise BudgetExceeded(f"budget.{name}", value, f"<= {limit} tokens", f"strict budget not met: {detail}")
    options = inputs.options
    every = plan.policy.renew_every if options.renew_every is None else options.renew_every
    keep = (plan.keep_full_prefix or every > 0) if options.keep_full_prefix is None else options.keep_full_prefix
    policy = _renewed(plan, every if keep and inputs.may_renew else 0, options.renew_window)
    return RouteChoice(Route.SPEC_KV, Reason.REQUESTED, detail, policy, keep, continued_tokens=held)


def _renewed(plan: KvPlan, every: int, asked_window: int | None) -> SpecKv:
    """The policy of an earlier turn with another `renew_every`, and with the caller's window if one is asked for. The
    earlier turn's own window is known to fit what it keeps."""
    policy = plan.policy
    if every == 0:
        return replace(policy, renew_every=0)
    window = policy.renew_window if policy.renews else policy.window
    if asked_window is not None:
        kept = policy.capacity if plan.kv_mask is None else int(np.count_nonzero(plan.kv_mask.kept[0, 0, :-1]))
        spare = kept - int(np.count_nonzero(plan.must_keep(plan.prompt_tokens)))
        window = _bounded_window(asked_window, policy.capacity, policy.window + spare)
    return replace(policy, renew_every=every, renew_window=window)


def _bounded_window(wanted: int, capacity: int, room: int) -> int:
    """The window of renewals, shortened to the `room` beside protected tokens and to less than the capacity."""
    return min(wanted, capacity - 1, room)


@dataclass(frozen=True, slots=True)
class _Sizing:
    """Sizes the KV stage of one request: who selects, who makes the lookahead (not AUTO), and how the capacity
    adapts."""

    inputs: RoutingInputs
    selection: KvSelection
    lookahead: KvLookahead
    auto: AutoCapacity | None

    @property
    def kv_limit(self) -> int:
        """The KV tokens that the prompt may hold while decoding."""
        return most_tokens(self.auto, self.inputs.budget.max_kv_tokens, self.inputs.defaults.spec_kv.capacity + 1)

    def policy(self, read_tokens: int) -> SpecKv:
        """SpecKV within this budget, in whole pages, for so many tokens read. Raises InvalidRequest below the
        window."""
        inputs, template = self.inputs, self.inputs.defaults.spec_kv
        page = inputs.kv_page_tokens
        capacity = (self.kv_limit - 1) // page * page
        self._check_above_window(capacity)
        is_mask = self.selection is KvSelection.DRAFT_MASK
        adaptive = adaptive_of(self.auto, Bounds(capacity, template.window + 1, inputs.must_keep_kv, page), 1)
        if adaptive is None and not is_mask and inputs.budget.min_coverage is not None:
            adaptive = measured_at(capacity, page)
        return replace(
            template,
            capacity=capacity,
            selection=self.selection,
            lookahead_tokens=0 if is_mask else self._lookahead_tokens(read_tokens),  # a mask needs none
            mask=inputs.defaults.scoring(capacity) if is_mask or adaptive is not None else None,
            adaptive=adaptive,
            **self._renewal(capacity if adaptive is None else adaptive.min_capacity),
        )

    def _lookahead_tokens(self, read_tokens: int) -> int:
        """How many tokens the draft generates. The target reads them too, and one token is left to be generated."""
        if self.lookahead is KvLookahead.TARGET:
            return 0
        space = max(0, self.inputs.context_tokens - read_tokens - 2)
        return min(self.inputs.lookahead_tokens, space)

    def _renewal(self, capacity: int) -> dict[str, Any]:
        """The fields of SpecKv that select KV while the answer is generated, none if nothing does. Of `capacity` KV
        pairs or more, the window leaves room for everything that must be kept."""
        inputs, options, defaults = self.inputs, self.inputs.options, self.inputs.defaults
        every = value_or(options.renew_every, defaults.renew_every) if inputs.may_renew else 0
        is_target = self.lookahead is KvLookahead.TARGET
        if not every and not is_target:
            return {}
        wanted, window = value_or(options.renew_window, defaults.renew_window), defaults.spec_kv.window
        room = max(window, capacity - inputs.must_keep_kv + window)
        return {
            "renew_every": every,
            "renew_window": _bounded_window(wanted, capacity, room),
            "first_full_tokens": value_or(options.first_full_tokens, defaults.first_full_tokens) if is_target else 0,
        }

    def _check_above_window(self, capacity: int) -> None:
        window, page = self.inputs.defaults.spec_kv.window, self.inputs.kv_page_tokens
        if capacity > window:
            return
        least = (window // page + 1) * page + 1
        limit = f">= {least} tokens (more than the window of {window}, and the final token)"
        is_auto = self.auto is not None and self.auto.max_tokens == self.kv_limit != self.inputs.budget.max_kv_tokens
        field = "auto_capacity.max_tokens" if is_auto else "max_kv_tokens"
        raise InvalidRequest(f"budget.{field}", self.kv_limit, limit)

    def keep_full_prefix(self, route: Route, policy: SpecKv) -> bool:
        """The caller's choice; else only where the next question to the same document reads the same tokens, or where
        the target selects from the prefix again."""
        wanted = self.inputs.options.keep_full_prefix
        return route is Route.SPEC_KV or policy.renews if wanted is None else wanted


def _sizing(inputs: RoutingInputs, lookahead: KvLookahead) -> _Sizing:
    return _Sizing(inputs, inputs.selection, lookahead, inputs.auto_capacity)


def _spec_kv(sizing: _Sizing, why: str = "") -> RouteChoice:
    inputs = sizing.inputs
    if inputs.prompt_tokens <= sizing.kv_limit:
        detail = with_clause(f"{inputs.prompt_tokens} prompt tokens fit {sizing.kv_limit} KV tokens", why)
        return full(inputs, Reason.WITHIN_BUDGET, detail)
    if inputs.wanted is Route.SPEC_KV:
        check_fits_shortest_answer(inputs)
    else:  # a candidate of AUTO: other routes can compress and leave more room
        check_fits_reserved_answer(inputs)
    policy = sizing.policy(inputs.prompt_tokens)
    if inputs.must_keep_kv > policy.capacity:
        return protected_over_budget(inputs, inputs.must_keep_kv, policy.capacity)
    if too_large := _over_the_pool(inputs, inputs.prompt_tokens, policy):
        return full(inputs, Reason.KV_POOL_TOO_SMALL, too_large)
    detail = with_clause(f"keeps {up_to(policy)}{policy.capacity + 1} KV tokens", why)
    return RouteChoice(Route.SPEC_KV, Reason.REQUESTED, detail, policy, sizing.keep_full_prefix(Route.SPEC_KV, policy))


def _over_the_pool(inputs: RoutingInputs, read_tokens: int, policy: SpecKv) -> str:
    """Why the target's pool is too small to score so many tokens; empty if it is large enough or unknown."""
    needed = scoring_slots(read_tokens + policy.lookahead_tokens, policy.capacity, inputs.kv_page_tokens)
    if not inputs.kv_pool_tokens or needed < inputs.kv_pool_tokens:
        return ""
    return f"selecting KV takes {needed} slots, the target's pool has {inputs.kv_pool_tokens}"


def _spec_kv_pc(sizing: _Sizing, why: str = "") -> RouteChoice:
    inputs, auto = sizing.inputs, sizing.auto
    # The caller's bounds apply to the tokens read; the KV keeps the bounds that apply without the caller's.
    kv_auto = None if auto is None else replace(auto, min_tokens=None, max_tokens=None)
    sizing = replace(sizing, selection=KvSelection.TARGET_LOOKAHEAD, auto=kv_auto)
    limit = inputs.budget.max_prompt_tokens
    capacity = min(most_tokens(auto, limit, inputs.defaults.cascade_capacity), inputs.room)
    if inputs.prompt_tokens <= min(sizing.kv_limit, inputs.room, value_or(limit, sizing.kv_limit)):
        return _spec_kv(sizing, why)
    if inputs.prompt_tokens <= capacity:
        return _spec_kv(sizing, f"all {inputs.prompt_tokens} prompt tokens fit {capacity}")
    return _cascade(sizing, why, prompt_policy(capacity, auto, inputs))


def _cascade(sizing: _Sizing, why: str, prompt: SpecPc) -> RouteChoice:
    """Both stages, for a prompt that is longer than the first one keeps."""
    inputs, capacity = sizing.inputs, prompt.capacity
    if inputs.must_keep > capacity:
        return protected_over_budget(inputs, inputs.must_keep, capacity)
    if capacity <= sizing.kv_limit:
        fits = f"their KV fits {sizing.kv_limit} tokens"
        detail = with_clause(f"keeps {up_to(prompt)}{capacity} prompt tokens", why or fits)
        return RouteChoice(Route.SPEC_PC, Reason.REQUESTED, detail, prompt)
    kv = replace(sizing.policy(capacity), mask=None)  # the draft counts by the rows of the first stage
    if inputs.must_keep_kv > kv.capacity:
        return protected_over_budget(inputs, inputs.must_keep_kv, kv.capacity)
    if too_large := _over_the_pool(inputs, capacity, kv):
        return full(inputs, Reason.KV_POOL_TOO_SMALL, too_large)
    detail = with_clause(f"keeps {up_to(prompt)}{capacity} prompt and {kv.capacity + 1} KV tokens", why)
    keep = sizing.keep_full_prefix(Route.SPEC_KV_PC, kv)
    return RouteChoice(Route.SPEC_KV_PC, Reason.REQUESTED, detail, SpecKvPc(prompt, kv), keep)
