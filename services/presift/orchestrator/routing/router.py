"""Chooses a route. Pure: a named route by `ROUTES`, AUTO in `auto`.

A route that the quality guard has switched off is chosen only if nothing else is possible.
"""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong, RouteUnsupported
from presift.core.plan import Route
from presift.orchestrator.routing.auto import choose_auto
from presift.orchestrator.routing.candidates import ROUTES
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs, with_clause
from presift.orchestrator.routing.forecast import with_forecast
from presift.orchestrator.routing.full_route import check_fits_reserved_answer, full


def choose(inputs: RoutingInputs) -> RouteChoice:
    """The route for one request.

    Raises RouteUnsupported, PromptTooLong (nothing can make it fit), InvalidRequest (a budget below the window), or
    BudgetExceeded (only if strict).
    """
    check_served(inputs)
    if not inputs.off:
        return _choose(inputs)
    try:
        choice = _choose(inputs)
    except (InvalidRequest, BudgetExceeded):  # for instance: the budget is too small for every route that is on
        choice = _choose(replace(inputs, off={}))
    return choice if choice.route not in inputs.off else _instead_of(choice, inputs)


def switched_off_choice(chosen: RouteChoice, inputs: RoutingInputs) -> RouteChoice | None:
    """The choice if no route were switched off; None if that is the same route."""
    if not inputs.off:
        return None
    try:
        other = _choose(replace(inputs, off={}))
    except PresiftError:
        return None
    return other if other.route in inputs.off and other.route is not chosen.route else None


def check_served(inputs: RoutingInputs) -> None:
    """Raise RouteUnsupported, with the target's reason, or InvalidRequest for a route that cannot do what is asked."""
    wanted = inputs.wanted
    if wanted is not None and wanted in inputs.beyond:
        raise inputs.beyond[wanted]
    if wanted is not None and wanted not in inputs.supported:
        served = ", ".join(sorted(inputs.supported))
        why = f" ({inputs.unsupported[wanted]})" if wanted in inputs.unsupported else ""
        raise RouteUnsupported(
            "route", wanted, f"one of {served}", f"route {wanted} is not served here{why}; served: {served}"
        )


def _instead_of(choice: RouteChoice, inputs: RoutingInputs) -> RouteChoice:
    """Full instead of a route that is switched off; the route all the same if full is not possible."""
    why = f"{choice.route} {inputs.off[choice.route]}"
    try:
        check_fits_reserved_answer(inputs)
        return with_forecast(full(inputs, Reason.ROUTE_SWITCHED_OFF, why), inputs)
    except (PromptTooLong, BudgetExceeded) as error:
        context = f"does not fit the context of {inputs.context_tokens}"
        lacks = context if isinstance(error, PromptTooLong) else "exceeds the strict budget"
        although = f"although {choice.route} is switched off: full {lacks}"
        return replace(choice, detail=with_clause(choice.detail, although))


def _choose(inputs: RoutingInputs) -> RouteChoice:
    threshold = inputs.compress_above_tokens
    if inputs.wanted is Route.FULL:
        choice = full(inputs, Reason.REQUESTED, "reads the whole prompt")
    elif inputs.prompt_tokens <= min(threshold, inputs.room):
        detail = f"{inputs.prompt_tokens} prompt tokens, compressed above {threshold}"
        choice = full(inputs, Reason.BELOW_THRESHOLD, detail)
    elif inputs.wanted is None:
        choice = choose_auto(inputs)
    else:
        choice = ROUTES[inputs.wanted](inputs)
    return with_forecast(_with_reason_if_only_protected(choice, inputs), inputs)


def _with_reason_if_only_protected(choice: RouteChoice, inputs: RoutingInputs) -> RouteChoice:
    """The choice, with ONLY_PROTECTED_KEPT as its reason if a stage has no room beyond the tokens that must be kept."""
    if choice.policy is None:
        return choice
    prompt, kv = choice.policy.prompt_stage, choice.policy.kv_stage
    if (prompt is None or prompt.capacity > inputs.must_keep) and (kv is None or kv.capacity > inputs.must_keep_kv):
        return choice
    must = inputs.must_keep if prompt is not None and prompt.capacity <= inputs.must_keep else inputs.must_keep_kv
    detail = with_clause(choice.detail, f"nothing but the {must} tokens that must be kept")
    # That a limit is exceeded all the same matters more.
    reason = choice.reason if choice.reason is Reason.BUDGET_NOT_MET else Reason.ONLY_PROTECTED_KEPT
    return replace(choice, reason=reason, detail=detail)
