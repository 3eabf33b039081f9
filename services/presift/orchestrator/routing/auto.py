"""AUTO: the least lossy route that meets the budget; `full` wherever nothing is predicted to be sooner. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import BudgetExceeded, DraftUnavailable, PromptTooLong
from presift.core.plan import Route
from presift.orchestrator.routing.adaptive_capacity import up_to
from presift.orchestrator.routing.candidates import Candidate, Question, candidates
from presift.orchestrator.routing.choice import Reason, RouteChoice, full
from presift.orchestrator.routing.forecast import reads_all, with_forecast


def choose_auto(question: Question) -> RouteChoice:
    """The route. Raises PromptTooLong, InvalidRequest (a budget below every window) or BudgetExceeded (if strict)."""
    table = candidates(question)
    possible = [each for each in table if each.choice is not None]
    fitting = [each for each in possible if not each.over]
    # Nothing is dropped for nothing: where another route that fits keeps more, it is the other's turn.
    best = next((each for each in fitting if not any(other.keeps_more(each) for other in fitting)), None)
    whole = next((each for each in possible if each.route is Route.FULL), None)
    if whole is not None and whole is not best and _is_cheapest(whole, possible, question):
        return _cheapest(question)
    if best is not None:
        return _best(best, table, question)
    if not any(each.route is not Route.FULL for each in possible):
        return _in_full(table, question)
    return _nearest(min(possible, key=lambda each: each.excess), table, question)


def less_lossy(than: RouteChoice, coverage: float | None, question: Question) -> RouteChoice:
    """What follows a choice whose draft covered too little (None: nobody knows how much): the next less lossy route
    within all limits, else full.

    Raises PromptTooLong where only full is left and does not fit, BudgetExceeded (only if strict).
    """
    order, table = question.defaults.route_order, {each.route: each for each in candidates(question)}
    position = order.index(than.route) if than.route in order else len(order)
    covered = "covers what is not known" if coverage is None else f"covers {coverage:.3f}"
    why = f"{than.route} {covered}, min_coverage is {question.budget.min_coverage:g}"
    for route in reversed(order[:position]):
        choice, is_over = table[route].choice, table[route].over and question.budget.has_limits
        if choice is not None and not is_over and _covers_more(table[route], than):
            detail = f"{why}; so {_kept(table[route])}"
            choice = replace(choice, reason=Reason.COVERAGE_TOO_LOW, detail=detail)
            return with_forecast(choice, question.budget, question.facts)
    if question.budget.strict:
        value, limit = "unknown" if coverage is None else round(coverage, 3), f">= {question.budget.min_coverage:g}"
        raise BudgetExceeded("budget.min_coverage", value, limit, f"strict budget not met: {why}")
    choice = full(question.budget, question.facts, Reason.COVERAGE_TOO_LOW, f"{why}; so full")
    return with_forecast(choice, question.budget, question.facts)


def _covers_more(candidate: Candidate, than: RouteChoice) -> bool:
    """Whether there is hope: the mask of a route that reads no more covers no more."""
    if reads_all(candidate.route) or candidate.forecast is None or than.forecast is None:
        return True
    return candidate.forecast.read_tokens > than.forecast.read_tokens


def _is_cheapest(whole: Candidate, possible: list[Candidate], question: Question) -> bool:
    """Whether the whole prompt may be read, and nothing is sooner, even if what was never measured took no time."""
    if whole.forecast is None or (question.budget.has_limits and whole.over):
        return False
    others = [each.forecast.least_ms for each in possible if each.forecast is not None and each is not whole]
    return bool(others) and whole.forecast.ttft_ms <= min(others)


def _cheapest(question: Question) -> RouteChoice:
    facts, sooner = question.facts, "nothing is predicted to be sooner"
    if not facts.outlook.cached_tokens:
        return RouteChoice(Route.FULL, Reason.CHEAPEST, f"{sooner} than the whole prompt")
    cached = f"{facts.outlook.cached_tokens} of {facts.prompt_tokens} prompt tokens are expected in the target's cache"
    return RouteChoice(Route.FULL, Reason.CHEAPEST, f"{cached}, so {sooner}")


def _best(best: Candidate, table: list[Candidate], question: Question) -> RouteChoice:
    if best.route is Route.FULL:
        return RouteChoice(Route.FULL, Reason.WITHIN_BUDGET, _fits(best, question))
    return _taken(best, Reason.OVER_BUDGET, table)


def _fits(whole: Candidate, question: Question) -> str:
    """What the whole prompt takes of each kind that is limited."""
    limits = dict(question.limits)
    limit_ms, said = limits.pop("max_ttft_ms", None), []
    if limits:
        within = ", ".join(question.allowed(name, limit) for name, limit in limits.items())
        said.append(f"{question.facts.prompt_tokens} prompt tokens fit {within}")
    if limit_ms is not None and whole.forecast is not None:
        said.append(f"predicted at {whole.forecast.ttft_ms:.0f} ms, within max_ttft_ms {question.budget.max_ttft_ms}")
    return "; ".join(said)


def _in_full(table: list[Candidate], question: Question) -> RouteChoice:
    """Nothing but full is possible, if that is."""
    instead = [each.instead for each in table if each.instead is not None]
    protected = [each for each in instead if each.reason is Reason.PROTECTED_OVER_BUDGET]
    if protected:
        return protected[-1]
    errors = [each.error for each in table if each.error is not None]
    unread = [error.message for error in errors if isinstance(error, DraftUnavailable)]
    if unread:
        return _undrafted(unread[-1], question)
    if errors and (question.budget.has_limits or question.facts.prompt_tokens > question.facts.room):
        raise errors[-1]
    off = [f"{route} {why}" for route, why in question.facts.off.items()]
    if off:
        return full(question.budget, question.facts, Reason.ROUTE_SWITCHED_OFF, "; ".join([*off, "so full"]))
    if instead and instead[-1].route is Route.FULL:
        return instead[-1]
    why = "; ".join(each.told() for each in table if each.route in question.facts.supported - {Route.FULL})
    detail = f"{why}; so full" if why else "no compressing route is served here"
    return full(question.budget, question.facts, Reason.WITHIN_BUDGET, detail)


def _undrafted(why: str, question: Question) -> RouteChoice:
    """No draft can read the prompt."""
    try:
        return full(question.budget, question.facts, Reason.DRAFT_UNAVAILABLE, f"{why}; so full")
    except PromptTooLong as error:
        message = f"{error.message}; it cannot be compressed: {why}"
        raise PromptTooLong(error.field, error.value, error.limit, message) from error


def _nearest(nearest: Candidate, table: list[Candidate], question: Question) -> RouteChoice:
    """No route meets the budget."""
    if not question.budget.has_limits:  # a default is no promise
        if nearest.route is Route.FULL:
            return _in_full(table, question)
        return _taken(nearest, Reason.OVER_BUDGET, table)
    told = "; ".join(each.told() for each in table)
    if question.budget.strict:
        name, value, limit = nearest.over[0]
        raise BudgetExceeded(f"budget.{name}", value, f"<= {limit}", f"strict budget not met: {told}")
    if nearest.route is Route.FULL:
        return RouteChoice(Route.FULL, Reason.BUDGET_NOT_MET, f"{told}; full is the nearest")
    return _taken(nearest, Reason.BUDGET_NOT_MET, table)


def _taken(candidate: Candidate, reason: Reason, table: list[Candidate]) -> RouteChoice:
    """Its choice with the reason in words: what the less lossy routes lack."""
    assert candidate.choice is not None
    passed = [each.told() for each in table[: table.index(candidate)] if each.over or each.why_not]
    taken = f"so {_kept(candidate)}"
    if reason is Reason.BUDGET_NOT_MET:
        passed = [each.told() for each in table]
        taken = f"{candidate.route} is the nearest, {taken}"
    return replace(candidate.choice, reason=reason, detail="; ".join([*passed, taken]))


def _kept(candidate: Candidate) -> str:
    found = candidate.forecast
    if found is None or candidate.route is Route.FULL:
        return str(candidate.route)
    at_most = up_to(None if candidate.choice is None else candidate.choice.policy)
    return f"{candidate.route}, reading {at_most}{found.read_tokens} and holding {at_most}{found.kv_tokens} tokens"
