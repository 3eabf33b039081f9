"""AUTO: the least lossy route within the budget; `full` wherever no route is predicted to be faster. Pure.

The first route of `route_order` within the limits wins, unless another one within them keeps more tokens. If none is
within them, the nearest wins, or the first of equally near ones. `full` wins against routes that are just as fast.
"""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import BudgetExceeded, DraftUnavailable, PromptTooLong
from presift.core.plan import Route
from presift.orchestrator.routing.adaptive_capacity import up_to
from presift.orchestrator.routing.candidates import Candidate, candidates
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs, with_clause
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
        return _full_as_cheapest(full_candidate, possible, inputs)
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
            detail = with_clause(why, _kept_text(candidate))
            return with_forecast(_choice_of(candidate, Reason.COVERAGE_TOO_LOW, detail), inputs)
    if inputs.budget.strict:
        value, limit = "unknown" if coverage is None else round(coverage, 3), f">= {inputs.budget.min_coverage:g}"
        raise BudgetExceeded("budget.min_coverage", value, limit, f"strict budget not met: {why}")
    check_fits_reserved_answer(inputs)
    return with_forecast(full(inputs, Reason.COVERAGE_TOO_LOW, why), inputs)


def _covers_more(candidate: Candidate, than: RouteChoice) -> bool:
    """Whether it may cover more: the mask of a route that reads no more tokens covers no more."""
    if reads_all(candidate.route) or candidate.forecast is None or than.forecast is None:
        return True
    return candidate.forecast.read_tokens > than.forecast.read_tokens


def _is_cheapest(full_candidate: Candidate, possible: list[Candidate], inputs: RoutingInputs) -> bool:
    """Whether the whole prompt may be read and no route is faster, even if unmeasured stages took no time."""
    if full_candidate.forecast is None or (inputs.budget.has_limits and full_candidate.over):
        return False
    fastest_ms = _fastest_other_ms(full_candidate, possible)
    return fastest_ms is not None and full_candidate.forecast.ttft_ms <= fastest_ms


def _fastest_other_ms(full_candidate: Candidate, possible: list[Candidate]) -> float | None:
    """The least time of the other routes; None if there are none."""
    others = [each.forecast.least_ms for each in possible if each.forecast is not None and each is not full_candidate]
    return min(others, default=None)


def _full_as_cheapest(full_candidate: Candidate, possible: list[Candidate], inputs: RoutingInputs) -> RouteChoice:
    cached, fastest_ms = inputs.state.cached_tokens, _fastest_other_ms(full_candidate, possible)
    assert full_candidate.forecast is not None and fastest_ms is not None
    warm = f" ({cached} of {inputs.prompt_tokens} tokens cached)" if cached else ""
    detail = f"full is predicted at {full_candidate.forecast.ttft_ms:.0f} ms{warm}"
    detail = with_clause(detail, f"the fastest other route at {fastest_ms:.0f} ms")
    return _choice_of(full_candidate, Reason.CHEAPEST, detail)


def _choose_best(best: Candidate, table: list[Candidate], inputs: RoutingInputs) -> RouteChoice:
    if best.route is Route.FULL:
        return _choice_of(best, Reason.WITHIN_BUDGET, _within_limits_text(best, inputs))
    return _choose_compressing(best, table, inputs)


def _within_limits_text(full_candidate: Candidate, inputs: RoutingInputs) -> str:
    """The cost of the whole prompt, for the tightest limit on tokens and for that on time."""
    limits = inputs.limits
    limit_ms, fits, in_time = limits.pop("max_ttft_ms", None), "", ""
    if limits:
        name = min(limits, key=limits.__getitem__)
        fits = f"{inputs.prompt_tokens} prompt tokens fit {inputs.limit_text(name, limits[name])}"
    if limit_ms is not None and full_candidate.forecast is not None:
        in_time = (
            f"predicted at {full_candidate.forecast.ttft_ms:.0f} ms, within max_ttft_ms {inputs.budget.max_ttft_ms}"
        )
    return with_clause(fits, in_time)


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
    if inputs.off:
        (route, off), *others = inputs.off.items()
        so_are = f"so are {', '.join(other for other, _ in others)}" if others else ""
        return full(inputs, Reason.ROUTE_SWITCHED_OFF, with_clause(f"{route} {off}", so_are))
    if instead and instead[-1].route is Route.FULL:
        return instead[-1]
    served = [each for each in table if each.route in inputs.supported - {Route.FULL}]
    why = f"{served[-1].route} {served[-1].shortfall}" if served else "no compressing route is served here"
    return full(inputs, Reason.WITHIN_BUDGET, why)


def _full_without_draft(why: str, inputs: RoutingInputs) -> RouteChoice:
    """Route full because no draft can read the prompt."""
    try:
        return full(inputs, Reason.DRAFT_CONTEXT_TOO_SMALL, why)
    except PromptTooLong as error:
        message = f"{error.message}; it cannot be compressed: {why}"
        raise PromptTooLong(error.field, error.value, error.limit, message, error.sizes) from error


def _choose_nearest(nearest: Candidate, table: list[Candidate], inputs: RoutingInputs) -> RouteChoice:
    """The route that breaks the limits least, because none keeps them."""
    if not inputs.budget.has_limits:  # the default capacity is no promise
        if nearest.route is Route.FULL:
            return _full_as_only_route(table, inputs)
        return _choose_compressing(nearest, table, inputs)
    if inputs.budget.strict:
        shortfalls = "; ".join(f"{each.route} {each.why}" for each in table)
        name, value, limit = nearest.over[0]
        raise BudgetExceeded(f"budget.{name}", value, f"<= {limit}", f"strict budget not met: {shortfalls}")
    return _choice_of(nearest, Reason.BUDGET_NOT_MET, f"{nearest.route} is the nearest; it {nearest.shortfall}")


def _choose_compressing(candidate: Candidate, table: list[Candidate], inputs: RoutingInputs) -> RouteChoice:
    """The candidate's choice. Its detail says what a less lossy route lacks: one that this request may not have, else
    full, else the first."""
    kept = _kept_text(candidate)
    lacking = [each for each in table[: table.index(candidate)] if each.over or each.why_not]
    if lacking:
        told = min(lacking, key=lambda each: (not inputs.barred(each.route), each.route is not Route.FULL))
        kept = with_clause(kept, f"{told.route} {told.shortfall}")
    return _choice_of(candidate, Reason.OVER_BUDGET, kept)


def _choice_of(candidate: Candidate, reason: Reason, detail: str) -> RouteChoice:
    assert candidate.choice is not None
    return replace(candidate.choice, reason=reason, detail=detail, forecast=candidate.forecast)


def _kept_text(candidate: Candidate) -> str:
    """What a compressing route keeps; empty for full."""
    found = candidate.forecast
    if found is None or candidate.route is Route.FULL:
        return ""
    read, held = f"{found.read_tokens} prompt", f"{found.kv_tokens} KV"
    if reads_all(candidate.route):
        kept = held
    else:
        kept = read if found.kv_tokens == found.read_tokens else f"{read} and {held}"
    at_most = up_to(None if candidate.choice is None else candidate.choice.policy)
    return f"{candidate.route} keeps {at_most}{kept} tokens"
