"""Route full: the target reads the whole prompt, by choice or because nothing else is possible. Pure."""

from __future__ import annotations

from presift.core.errors import BudgetExceeded, PromptTooLong
from presift.core.generation import ContextSizes
from presift.core.plan import Route
from presift.orchestrator.routing.choice import OVER_A_LIMIT, Reason, RouteChoice, RoutingInputs, with_clause

# So many kinds of protected text are named in a decision's detail.
_NAMED_KINDS = 2


def whole_prompt(inputs: RoutingInputs) -> RouteChoice:
    """Route full as a candidate of AUTO. Raises PromptTooLong."""
    check_fits_reserved_answer(inputs)
    return RouteChoice(Route.FULL, Reason.WITHIN_BUDGET, "")


def full(inputs: RoutingInputs, reason: Reason, detail: str) -> RouteChoice:
    """Route full. Raises PromptTooLong, or BudgetExceeded if `strict` forbids it."""
    check_fits_shortest_answer(inputs)
    limit = inputs.budget.capacity
    if limit is not None and inputs.prompt_tokens > limit:
        if reason not in OVER_A_LIMIT:
            detail = with_clause(detail, f"over the budget of {limit} tokens")
        if inputs.budget.strict:
            raise BudgetExceeded(
                "budget", inputs.prompt_tokens, f"<= {limit} tokens", f"strict budget not met: {detail}"
            )
    return RouteChoice(Route.FULL, reason, detail)


def protected_over_budget(inputs: RoutingInputs, needed: int, capacity: int) -> RouteChoice:
    """Route full, because the tokens that must be kept exceed the capacity."""
    detail = f"protected spans and window need {needed} of {capacity} tokens"
    if inputs.protected_kinds:
        kinds = ", ".join(f"{kind} {tokens}" for kind, tokens in inputs.protected_kinds[:_NAMED_KINDS])
        detail = f"{detail} ({kinds})"
    return full(inputs, Reason.PROTECTED_OVER_BUDGET, detail)


def check_fits_shortest_answer(inputs: RoutingInputs) -> None:
    """Raise PromptTooLong unless the whole prompt and the shortest answer fit the target's context."""
    _check_room(inputs, inputs.least_new_tokens)


def check_fits_reserved_answer(inputs: RoutingInputs) -> None:
    """Raise PromptTooLong unless the whole prompt leaves the room that is reserved for the answer."""
    _check_room(inputs, inputs.reserved_tokens)


def _check_room(inputs: RoutingInputs, new_tokens: int) -> None:
    context, tokens = inputs.context_tokens, inputs.prompt_tokens
    if tokens + new_tokens > context:
        limit = f"<= {context - new_tokens} (context {context} less {new_tokens} for the answer)"
        sizes = ContextSizes(context, tokens, new_tokens)
        raise PromptTooLong("prompt", f"{tokens} tokens", limit, sizes=sizes)
