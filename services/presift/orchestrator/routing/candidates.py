"""Candidates: every route as one request would get it, predicted and held against the budget. Pure; `auto` chooses.

Without limits the default capacity is the limit, as on spec_pc. A route that is too slow for `max_ttft_ms` keeps fewer
prompt tokens: capacities halve until it is met.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from presift.core.errors import PresiftError
from presift.core.plan import Route
from presift.orchestrator.domain.request import Budget, KvOptions
from presift.orchestrator.routing.adaptive_capacity import most_tokens
from presift.orchestrator.routing.choice import Defaults, Facts, Reason, RouteChoice, check_fits, spec_pc
from presift.orchestrator.routing.cost_model import Forecast
from presift.orchestrator.routing.forecast import check_draft_reads, forecast, reads_all
from presift.orchestrator.routing.kv_routes import choose_kv


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route as this request would get it: a choice and what it is predicted to cost, or why there is none.

    `over`: by limit, what it would cost and what it may; `needs`: the same in words. `error`: what a caller who named
    the route would be told; `instead`: what they would get.
    """

    route: Route
    why_not: str = ""
    choice: RouteChoice | None = None
    forecast: Forecast | None = None
    over: tuple[tuple[str, int, int], ...] = ()
    needs: tuple[str, ...] = ()
    error: PresiftError | None = None
    instead: RouteChoice | None = None

    @property
    def excess(self) -> float:
        """How far it is from the budget: the sum of what is over each limit, as a share of that limit."""
        return sum(value / limit - 1.0 for _, value, limit in self.over)

    def keeps_more(self, other: Candidate) -> bool:
        """Whether it reads and holds no less than the other, more of one, and drops no KV of what it reads."""
        if self.forecast is None or other.forecast is None or not self._keeps_all_kv_of(other):
            return False
        mine, its = ((each.read_tokens, each.kv_tokens) for each in (self.forecast, other.forecast))
        return mine != its and mine[0] >= its[0] and mine[1] >= its[1]

    def told(self) -> str:
        """In words, why it was not taken."""
        return f"{self.route} {self.why}"

    def _keeps_all_kv_of(self, other: Candidate) -> bool:
        """Whether it drops no KV, and prompt tokens only by the mask that the other drops them by."""
        if self.choice is None or other.choice is None or self.route is other.route:
            return False
        mine, its = self.choice.policy, other.choice.policy
        return mine is None or (not mine.drops_kv and its is not None and its.prompt_stage is not None)

    @property
    def why(self) -> str:
        """Why it cannot be, or which limits it breaks."""
        return self.why_not or "needs " + ", ".join(self.needs)


_COSTS = {
    "max_prompt_tokens": "{} prompt tokens",
    "max_kv_tokens": "{} KV tokens",
    "max_ttft_ms": "{} ms (predicted)",
}
# The tenth of the caller's time that is left in reserve: predictions err by as much in the median (tests/bench/LOG.md).
_RESERVE = 10


@dataclass(frozen=True, slots=True)
class Question:
    """What AUTO chooses by."""

    budget: Budget
    options: KvOptions
    facts: Facts
    defaults: Defaults

    @property
    def limits(self) -> dict[str, int]:
        """The caller's limits, time with a reserve for what predictions err by; else the default capacity."""
        budget = self.budget
        told = {
            "max_prompt_tokens": budget.max_prompt_tokens,
            "max_kv_tokens": budget.max_kv_tokens,
            "max_ttft_ms": None if budget.max_ttft_ms is None else _planned(budget.max_ttft_ms),
        }
        limits = {name: limit for name, limit in told.items() if limit is not None}
        auto = self.budget.auto(self.defaults.auto_capacity)
        return limits or {"max_prompt_tokens": most_tokens(auto, None, self.defaults.spec_pc.capacity)}

    def allowed(self, name: str, limit: int) -> str:
        """One of the limits in words: the number that the caller set, or whose it is else."""
        asked = getattr(self.budget, name)
        if asked is None:
            auto = self.budget.auto(self.defaults.auto_capacity)
            is_auto = auto is not None and auto.max_tokens == limit
            return f"{limit} ({'auto_capacity.max_tokens' if is_auto else 'the default capacity'})"
        return f"{limit} ({name})" if asked == limit else f"{limit} (nine tenths of {name} {asked})"


def candidates(question: Question) -> list[Candidate]:
    """Every route of the order, in that order."""
    limits = question.limits
    return [_candidate(route, question, limits) for route in question.defaults.route_order]


def _planned(limit_ms: int) -> int:
    return limit_ms - limit_ms // _RESERVE


def _candidate(route: Route, question: Question, limits: dict[str, int]) -> Candidate:
    if route not in question.facts.supported:
        return Candidate(route, "is not served here")
    if route in question.facts.off:
        return Candidate(route, question.facts.off[route])
    try:
        found = _weighed(route, question, limits)
    except PresiftError as error:
        return Candidate(route, f"cannot be: {error.message}", error=error)
    limit = limits.get("max_ttft_ms")
    if limit is None or reads_all(route) or (found.forecast is not None and found.forecast.ttft_ms <= limit):
        return found
    return _sooner(found, question, limits) or found


def _sooner(found: Candidate, question: Question, limits: dict[str, int]) -> Candidate | None:
    """The same route within all limits, keeping as many prompt tokens as the time allows; None where there is none."""
    tokens, limit = question.facts.prompt_tokens, limits["max_ttft_ms"]
    if found.forecast is not None:
        tokens = found.forecast.read_tokens
        if found.forecast.ttft_ms - found.forecast.target_ms > limit:
            return None  # the draft alone takes too long
    for capacity in _smaller(tokens, question.facts.must_keep):
        budget = replace(question.budget, max_prompt_tokens=capacity)
        try:
            smaller = _weighed(found.route, replace(question, budget=budget), limits)
        except PresiftError:
            return None
        if smaller.choice is not None and not smaller.over:
            return smaller
    return None


def _smaller(capacity: int, must_keep: int) -> Iterator[int]:
    """Powers of two below the capacity, so that few different compressed prompts come to be cached; then the least."""
    if capacity <= max(1, must_keep):
        return
    power = 1 << (capacity - 1).bit_length() - 1
    while power > must_keep:
        yield power
        power //= 2
    yield must_keep


def _weighed(route: Route, question: Question, limits: dict[str, int]) -> Candidate:
    choice = _choice(route, question)
    if choice.route is not route:
        return Candidate(route, f"would be the same as {choice.route} within these limits", instead=choice)
    check_draft_reads(choice, question.facts)
    found = forecast(choice, question.facts)
    costs = {
        "max_prompt_tokens": found.read_tokens,
        "max_kv_tokens": found.kv_tokens,
        "max_ttft_ms": round(found.ttft_ms),
    }
    over = tuple((name, costs[name], limit) for name, limit in limits.items() if costs[name] > limit)
    needs = tuple(f"{_COSTS[name].format(value)} of {question.allowed(name, limit)}" for name, value, limit in over)
    return Candidate(route, choice=choice, forecast=found, over=over, needs=needs)


def _choice(route: Route, question: Question) -> RouteChoice:
    """What a caller who named this route would get."""
    facts, budget = question.facts, question.budget
    if route is Route.FULL:
        check_fits(facts)
        return RouteChoice(Route.FULL, Reason.WITHIN_BUDGET, "")
    if route is Route.SPEC_PC:
        return spec_pc(budget, facts, question.defaults)
    return choose_kv(route, budget, question.options, facts, question.defaults)
