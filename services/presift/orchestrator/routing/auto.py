"""AUTO: the least lossy route within the budget; `full` wherever no route is predicted to be faster. Pure.

The first route of `route_order` within the limits wins, unless another one within them keeps more tokens. If none is
within them, the nearest wins, or the first of equally near ones. `full` wins against routes that are just as fast.
"""

from __future__ import annotations

from collections.abc import Iterable

from presift.core.errors import BudgetExceeded, DraftUnavailable, PromptTooLong
from presift.core.plan import Route
from presift.orchestrator.routing.adaptive_capacity import up_to
from presift.orchestrator.routing.candidates import Candidate, candidates
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs
from presift.orchestrator.routing.forecast import reads_all, with_forecast
from presift.orchestrator.routing.full_route import check_fits_reserved_answer, full


def choose_auto(inputs: RoutingInputs) -> RouteChoice:
    """The route. Raises PromptTooLong, InvalidRequest (a budget below every window) or BudgetExceeded (if strict)."""
    table = candidates(inputs)
    possible = [each for each in table if each.choice is not None]
    fitting = [each for each in possible if not each.over]
    # A route is skipped if another one that fits keeps more: it would drop tokens for nothing.
    best = next((each for each in fitting if not any(other.keeps_more(each) for other in fitting)), None)
    full_candidate = next((each for each in possible if each.route is Route.FULL), None)
    if full_candidate is not None and full_candidate is not best and _is_cheapest(full_candidate, possible, inputs):
        return _full_as_cheapest(full_candidate, inputs)
    if best is not None:
        return _choose_best(best, table, inputs)
    if not any(each.route is not Route.FULL for each in possible):
        return _full_as_only_route(table, inputs)
    return _choose_nearest(min(possible, key=lambda each: each.excess), table, inputs)


def less_lossy(than: RouteChoice, coverage: float | None, inputs: RoutingInputs) -> RouteChoice:
    """The choice after one whose draft covered too little (None: unknown): the next less lossy route within all limits,
    else full.

    Raises PromptTooLong if only full is left and does not fit with the room reserved for the answer, BudgetExceeded
    (only if strict).
    """
    order, table = inputs.defaults.route_order, {each.route: each for each in candidates(inputs)}
    position = order.index(than.route) if than.route in order else len(order)
    covered = "has an unknown coverage" if coverage is None else f"covers {coverage:.3f}"
    why = f"{than.route} {covered}, min_coverage is {inputs.budget.min_coverage:g}"
    for route in reversed(order[:position]):
        candidate = table[route]
        is_over = candidate.over and inputs.budget.has_limits
        if candidate.choice is not None and not is_over and _covers_more(candidate, than):
            detail = f"{why}; so {_kept_text(candidate)}"
            return with_forecast(_choice_of(candidate, Reason.COVERAGE_TOO_LOW, detail), inputs)
    if inputs.budget.strict:
        value, limit = "unknown" if coverage is None else round(coverage, 3), f">= {inputs.budget.min_coverage:g}"
        raise BudgetExceeded("budget.min_coverage", value, limit, f"strict budget not met: {why}")
    check_fits_reserved_answer(inputs)
    return with_forecast(full(inputs, Reason.COVERAGE_TOO_LOW, f"{why}; so full"), inputs)


def _covers_more(candidate: Candidate, than: RouteChoice) -> bool:
    """Whether it may cover more: the mask of a route that reads no more tokens covers no more."""
    if reads_all(candidate.route) or candidate.forecast is None or than.forecast is None:
        return True
    return candidate.forecast.read_tokens > than.forecast.read_tokens


def _is_cheapest(full_candidate: Candidate, possible: list[Candidate], inputs: RoutingInputs) -> bool:
    """Whether the whole prompt may be read and no route is faster, even if unmeasured stages took no time."""
    if full_candidate.forecast is None or (inputs.budget.has_limits and full_candidate.over):
        return False
    others = [each.forecast.least_ms for each in possible if each.forecast is not None and each is not full_candidate]
    return bool(others) and full_candidate.forecast.ttft_ms <= min(others)


def _full_as_cheapest(full_candidate: Candidate, inputs: RoutingInputs) -> RouteChoice:
    cached, detail = inputs.state.cached_tokens, "no route is predicted to be faster than the whole prompt"
    if cached:
        expected = f"{cached} of {inputs.prompt_tokens} prompt tokens are expected in the target's cache"
        detail = f"{expected}, so no route is predicted to be faster"
    return _choice_of(full_candidate, Reason.CHEAPEST, detail)


def _choose_best(best: Candidate, table: list[Candidate], inputs: RoutingInputs) -> RouteChoice:
    if best.route is Route.FULL:
        return _choice_of(best, Reason.WITHIN_BUDGET, _within_limits_text(best, inputs))
    return _choose_compressing(best, Reason.OVER_BUDGET, table)


def _within_limits_text(full_candidate: Candidate, inputs: RoutingInputs) -> str:
    """The cost of the whole prompt for each limit."""
    limits = inputs.limits
    limit_ms, parts = limits.pop("max_ttft_ms", None), []
    if limits:
        within = ", ".join(inputs.limit_text(name, limit) for name, limit in limits.items())
        parts.append(f"{inputs.prompt_tokens} prompt tokens fit {within}")
    if limit_ms is not None and full_candidate.forecast is not None:
        parts.append(
            f"predicted at {full_candidate.forecast.ttft_ms:.0f} ms, within max_ttft_ms {inputs.budget.max_ttft_ms}"
        )
    return "; ".join(parts)


def _full_as_only_route(table: list[Candidate], inputs: RoutingInputs) -> RouteChoice:
    """Route full because no other route is possible, with the most useful reason. Raises if full is not possible."""
    instead = [each.instead for each in table if each.instead is not None]
    protected = [each for each in instead if each.reason is Reason.PROTECTED_OVER_BUDGET]
    if protected:
        return protected[-1]
    errors = [each.error for each in table if each.error is not None]
    unread = [error.message for error in errors if isinstance(error, DraftUnavailable)]
    if unread:
        return _full_without_draft(unread[-1], inputs)
    fits = inputs.fits_shortest_answer
    # The prompt fits if the answer is short: what candidates refuse for the reserved room is no reason to fail.
    refusals = [error for error in errors if not (fits and isinstance(error, PromptTooLong))]
    if refusals and (inputs.budget.has_limits or not fits):
        raise refusals[-1]
    off = [f"{route} {why}" for route, why in inputs.off.items()]
    if off:
        return full(inputs, Reason.ROUTE_SWITCHED_OFF, "; ".join([*off, "so full"]))
    if instead and instead[-1].route is Route.FULL:
        return instead[-1]
    why = _shortfalls(each for each in table if each.route in inputs.supported - {Route.FULL})
    return full(inputs, Reason.WITHIN_BUDGET, f"{why}; so full" if why else "no compressing route is served here")


def _full_without_draft(why: str, inputs: RoutingInputs) -> RouteChoice:
    """Route full because no draft can read the prompt."""
    try:
        return full(inputs, Reason.DRAFT_CONTEXT_TOO_SMALL, f"{why}; so full")
    except PromptTooLong as error:
        message = f"{error.message}; it cannot be compressed: {why}"
        raise PromptTooLong(error.field, error.value, error.limit, message, error.sizes) from error


def _choose_nearest(nearest: Candidate, table: list[Candidate], inputs: RoutingInputs) -> RouteChoice:
    """The route that breaks the limits least, because none keeps them."""
    if not inputs.budget.has_limits:  # the default capacity is no promise
        if nearest.route is Route.FULL:
            return _full_as_only_route(table, inputs)
        return _choose_compressing(nearest, Reason.OVER_BUDGET, table)
    shortfalls = _shortfalls(table)
    if inputs.budget.strict:
        name, value, limit = nearest.over[0]
        raise BudgetExceeded(f"budget.{name}", value, f"<= {limit}", f"strict budget not met: {shortfalls}")
    if nearest.route is Route.FULL:
        return _choice_of(nearest, Reason.BUDGET_NOT_MET, f"{shortfalls}; full is the nearest")
    return _choose_compressing(nearest, Reason.BUDGET_NOT_MET, table)


def _choose_compressing(candidate: Candidate, reason: Reason, table: list[Candidate]) -> RouteChoice:
    """The candidate's choice; its detail says what the less lossy routes lack."""
    taken = f"so {_kept_text(candidate)}"
    if reason is Reason.BUDGET_NOT_MET:
        return _choice_of(candidate, reason, f"{_shortfalls(table)}; {candidate.route} is the nearest, {taken}")
    shortfalls = _shortfalls(each for each in table[: table.index(candidate)] if each.over or each.why_not)
    return _choice_of(candidate, reason, f"{shortfalls}; {taken}" if shortfalls else taken)


def _choice_of(candidate: Candidate, reason: Reason, detail: str) -> RouteChoice:
    assert candidate.choice is not None
    found = candidate.choice
    return RouteChoice(found.route, reason, detail, found.policy, found.keep_full_prefix, candidate.forecast)


def _shortfalls(table: Iterable[Candidate]) -> str:
    return "; ".join(f"{each.route} {each.why}" for each in table)


def _kept_text(candidate: Candidate) -> str:
    found = candidate.forecast
    if found is None or candidate.route is Route.FULL:
        return str(candidate.route)
    at_most = up_to(None if candidate.choice is None else candidate.choice.policy)
    return f"{candidate.route}, reading {at_most}{found.read_tokens} and holding {at_most}{found.kv_tokens} tokens"
