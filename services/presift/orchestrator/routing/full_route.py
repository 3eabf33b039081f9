"""Route full: the target reads the whole prompt, by choice or because nothing else is possible. Pure."""

from __future__ import annotations

from presift.core.errors import BudgetExceeded, PromptTooLong
from presift.core.generation import ContextSizes
from presift.core.plan import Route
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs


def whole_prompt(inputs: RoutingInputs) -> RouteChoice:
    """Route full as a candidate. Raises PromptTooLong."""
    check_fits(inputs)
    return RouteChoice(Route.FULL, Reason.WITHIN_BUDGET, "")


def full(inputs: RoutingInputs, reason: Reason, detail: str) -> RouteChoice:
    """Route full. Raises PromptTooLong, or BudgetExceeded if `strict` forbids it."""
    check_fits(inputs)
    limit = inputs.budget.capacity
    if limit is not None and inputs.prompt_tokens > limit:
        detail = f"{detail}; over the budget of {limit} tokens"
        if inputs.budget.strict:
            raise BudgetExceeded(
                "budget", inputs.prompt_tokens, f"<= {limit} tokens", f"strict budget not met: {detail}"
            )
    return RouteChoice(Route.FULL, reason, detail)


def protected_over_budget(inputs: RoutingInputs, needed: int, capacity: int) -> RouteChoice:
    """Route full, because the tokens that must be kept exceed the capacity."""
    detail = f"protected spans and window need {needed} tokens, the budget is {capacity}"
    return full(inputs, Reason.PROTECTED_OVER_BUDGET, detail)


def check_fits(inputs: RoutingInputs) -> None:
    """Raise PromptTooLong unless the whole prompt and the answer fit the target's context."""
    check_answer_fits(inputs)
    if inputs.prompt_tokens > inputs.room:
        limit = f"<= {inputs.room} (context {inputs.context_tokens} less max_new_tokens {inputs.max_new_tokens})"
        raise PromptTooLong("prompt", f"{inputs.prompt_tokens} tokens", limit, sizes=_sizes(inputs))


def check_answer_fits(inputs: RoutingInputs) -> None:
    """Raise PromptTooLong if the answer alone would fill the target's context."""
    if inputs.room < 1:
        answer, context = inputs.max_new_tokens, inputs.context_tokens
        both = f"{inputs.prompt_tokens} prompt tokens and sampling.max_new_tokens {answer}"
        message = f"{both} do not fit the context of {context} tokens: the answer alone would fill it"
        limit = f"< {context} (the context)"
        raise PromptTooLong("sampling.max_new_tokens", answer, limit, message, _sizes(inputs))


def _sizes(inputs: RoutingInputs) -> ContextSizes:
    return ContextSizes(inputs.context_tokens, inputs.prompt_tokens, inputs.max_new_tokens)
