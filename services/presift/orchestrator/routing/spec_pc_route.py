"""Route spec_pc: the target reads the prompt tokens that the draft keeps. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import SpecPc
from presift.orchestrator.domain.request import AutoCapacity
from presift.orchestrator.routing.adaptive_capacity import Bounds, adaptive_of, most_tokens, up_to
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs
from presift.orchestrator.routing.full_route import check_fits_reserved_answer, protected_over_budget


def spec_pc(inputs: RoutingInputs) -> RouteChoice:
    """SpecPC within the budget; full if the prompt fits the budget, or if the tokens that must be kept do not."""
    auto, default = inputs.auto_capacity, inputs.defaults.spec_pc
    capacity = min(most_tokens(auto, inputs.budget.capacity, default.capacity), inputs.room)
    if inputs.prompt_tokens <= capacity:
        return RouteChoice(Route.FULL, Reason.WITHIN_BUDGET, f"{inputs.prompt_tokens} prompt tokens fit {capacity}")
    policy = prompt_policy(capacity, auto, inputs)
    if inputs.must_keep > capacity:
        return protected_over_budget(inputs, inputs.must_keep, capacity)
    return RouteChoice(Route.SPEC_PC, Reason.REQUESTED, f"keeps {up_to(policy)}{capacity} prompt tokens", policy)


def prompt_policy(capacity: int, auto: AutoCapacity | None, inputs: RoutingInputs) -> SpecPc:
    """SpecPC with this capacity, or up to it. Raises InvalidRequest or PromptTooLong if the window does not fit."""
    template = inputs.defaults.scoring(capacity)
    if capacity < template.window:
        if inputs.room < template.window:
            check_fits_reserved_answer(inputs)
        raise InvalidRequest("budget", capacity, f">= {template.window} tokens (the window)")
    adaptive = adaptive_of(auto, Bounds(capacity, template.window, inputs.must_keep))
    return replace(template, capacity=capacity, adaptive=adaptive)
