"""Every route as one request would get it, with its predicted cost against the budget. Pure; `auto` chooses among them.

Without limits of the caller the default capacity is the limit. A route that is too slow for `max_ttft_ms` keeps fewer
prompt tokens: capacities halve until it is fast enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from presift.core.errors import DraftUnavailable, FieldError, PresiftError, PromptTooLong
from presift.core.plan import Route
from presift.orchestrator.routing.choice import RouteChoice, RoutingInputs
from presift.orchestrator.routing.cost_model import Forecast
from presift.orchestrator.routing.forecast import check_draft_reads, forecast, reads_all
from presift.orchestrator.routing.full_route import whole_prompt
from presift.orchestrator.routing.kv_routes import spec_kv, spec_kv_pc
from presift.orchestrator.routing.spec_pc_route import spec_pc

_COSTS = {
    "max_prompt_tokens": "{} prompt tokens",
    "max_kv_tokens": "{} KV tokens",
    "max_ttft_ms": "{} ms",
}


# The function that sizes each route, for AUTO and for a request that names it (but `full`). It may choose another route
# and say why.
ROUTES: dict[Route, Callable[[RoutingInputs], RouteChoice]] = {
    Route.FULL: whole_prompt,
    Route.SPEC_PC: spec_pc,
    Route.SPEC_KV: spec_kv,
    Route.SPEC_KV_PC: spec_kv_pc,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route as this request would get it: its choice with the predicted cost, or why it is not possible.

    `over` lists the limits that it breaks, each with cost and limit; `needs` says the same in words. `error` is what a
    caller who named the route would get; `instead` is the other route that they would get.
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
        """The distance to the budget: the sum of all excesses, each as a share of its limit."""
        return sum(value / limit - 1.0 for _, value, limit in self.over)

    @property
    def why(self) -> str:
        """Why the route is not possible, or which limits it breaks."""
        return self.why_not or "needs " + ", ".join(self.needs)

    @property
    def shortfall(self) -> str:
        """`why` in a few words, for the detail of a decision: of several limits the one that is exceeded most."""
        if self.over:
            excess = [value / limit for _, value, limit in self.over]
            return "needs " + self.needs[excess.index(max(excess))]
        error = self.error
        if isinstance(error, PromptTooLong) and error.sizes is not None:
            room = error.sizes.context_tokens - error.sizes.max_new_tokens
            return f"needs {error.sizes.prompt_tokens} tokens of {room} (the context less the answer)"
        if isinstance(error, FieldError):
            return f"needs {error.field} {str(error.limit).partition(' (')[0]}"
        return "exceeds the draft's context" if isinstance(error, DraftUnavailable) else self.why_not.partition(":")[0]

    def keeps_more(self, other: Candidate) -> bool:
        """Whether it reads and holds no less than the other, and more of one of them, without dropping more KV."""
        if self.forecast is None or other.forecast is None or not self._keeps_all_kv_of(other):
            return False
        mine, its = ((each.read_tokens, each.kv_tokens) for each in (self.forecast, other.forecast))
        return mine != its and mine[0] >= its[0] and mine[1] >= its[1]

    def _keeps_all_kv_of(self, other: Candidate) -> bool:
        """Whether it drops no KV, and prompt tokens only by the mask that the other drops them by."""
        if self.choice is None or other.choice is None or self.route is other.route:
            return False
        mine, its = self.choice.policy, other.choice.policy
        return mine is None or (not mine.drops_kv and its is not None and its.prompt_stage is not None)


def candidates(inputs: RoutingInputs) -> list[Candidate]:
    """Every route of the order, in that order."""
    limits = inputs.limits
    return [_candidate(route, inputs, limits) for route in inputs.defaults.route_order]


def _candidate(route: Route, inputs: RoutingInputs, limits: dict[str, int]) -> Candidate:
    if route not in inputs.supported:
        return Candidate(route, "is not served here")
    if barred := inputs.barred(route):
        return Candidate(route, barred)
    try:
        found = _weighed(route, inputs, limits)
    except PresiftError as error:
        return Candidate(route, f"is not possible: {error.message}", error=error)
    limit = limits.get("max_ttft_ms")
    if limit is None or reads_all(route) or (found.forecast is not None and found.forecast.ttft_ms <= limit):
        return found
    return _faster(found, inputs, limits) or found


def _faster(found: Candidate, inputs: RoutingInputs, limits: dict[str, int]) -> Candidate | None:
    """The same route within all limits, with as many prompt tokens as the time allows; None if there is none."""
    tokens, limit = inputs.prompt_tokens, limits["max_ttft_ms"]
    if found.forecast is not None:
        tokens = found.forecast.read_tokens
        if found.forecast.ttft_ms - found.forecast.target_ms > limit:
            return None  # the draft alone takes too long
    for capacity in _smaller(tokens, inputs.must_keep):
        budget = replace(inputs.budget, max_prompt_tokens=capacity)
        try:
            smaller = _weighed(found.route, replace(inputs, budget=budget), limits)
        except PresiftError:
            return None
        if smaller.choice is not None and not smaller.over:
            return smaller
    return None


def _smaller(capacity: int, must_keep: int) -> Iterator[int]:
    """Powers of two below the capacity, so that few different compressed prompts are cached; then the minimum."""
    if capacity <= max(1, must_keep):
        return
    power = 1 << (capacity - 1).bit_length() - 1
    while power > must_keep:
        yield power
        power //= 2
    yield must_keep


def _weighed(route: Route, inputs: RoutingInputs, limits: dict[str, int]) -> Candidate:
    choice = ROUTES[route](inputs)
    if choice.route is not route:
        return Candidate(route, f"would be the same as {choice.route} within these limits", instead=choice)
    check_draft_reads(choice, inputs)
    found = forecast(choice, inputs)
    costs = {
        "max_prompt_tokens": found.read_tokens,
        "max_kv_tokens": found.kv_tokens,
        "max_ttft_ms": round(found.ttft_ms),
    }
    over = tuple((name, costs[name], limit) for name, limit in limits.items() if costs[name] > limit)
    needs = tuple(f"{_COSTS[name].format(value)} of {inputs.limit_text(name, limit)}" for name, value, limit in over)
    return Candidate(route, choice=choice, forecast=found, over=over, needs=needs)
