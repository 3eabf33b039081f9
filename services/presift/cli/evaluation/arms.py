"""The arms of a comparison: each route with each budget, and `full`. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from presift.core.plan import Route
from presift.core.policies import KV_DROPPING_ROUTES, POLICIES

DEFAULT = "default"
_LIMIT = "a share of the prompt below 1 (0.25 or 25%), a number of tokens (512), or default"


@dataclass(frozen=True, slots=True)
class Budget:
    """A `share` of the prompt's tokens, a number of `tokens`, or neither: the orchestrator's default."""

    share: float | None = None
    tokens: int | None = None

    def limit(self, prompt_tokens: int | None) -> int | None:
        """In tokens, rounded up. Raises ValueError for a share of an unknown length."""
        if self.share is None:
            return self.tokens
        if prompt_tokens is None:
            raise ValueError("the share of a prompt of unknown length")
        return math.ceil(round(self.share * prompt_tokens, 6))

    def __str__(self) -> str:
        if self.share is not None:
            return f"{100 * self.share:g}%"
        return DEFAULT if self.tokens is None else str(self.tokens)


@dataclass(frozen=True, slots=True)
class Arm:
    """A route with a budget; `full` has none."""

    route: Route
    budget: Budget | None = None

    @property
    def name(self) -> str:
        """For people, and unique among the arms."""
        return self.route.value if self.budget is None else f"{self.route} {self.budget}"

    @property
    def is_relative(self) -> bool:
        """Whether its options depend on the length of the prompt."""
        return self.budget is not None and self.budget.share is not None

    @property
    def readers(self) -> frozenset[str]:
        """Which of "draft" and "target" read the whole prompt, and so have it in their caches afterwards."""
        policy = POLICIES.get(self.route)
        if policy is None:
            return frozenset({"target"})
        return frozenset({"draft", "target"} if policy.reads_whole_prompt else {"draft"})

    def options(self, prompt_tokens: int | None) -> dict[str, Any]:
        """The client's options: the route, and max_kv_tokens if the route drops KV, else max_prompt_tokens."""
        limit = None if self.budget is None else self.budget.limit(prompt_tokens)
        name = "max_kv_tokens" if self.route in KV_DROPPING_ROUTES else "max_prompt_tokens"
        return {"route": self.route.value} | ({} if limit is None else {name: limit})


BASELINE = Arm(Route.FULL)


def arms_of(routes: str, budgets: str) -> tuple[Arm, ...]:
    """`full`, then each route of a list separated by commas with each budget. Raises ValueError."""
    named = [_route(word) for word in _words(routes)]
    sizes = [budget_of(word) for word in _words(budgets)]
    arms = [Arm(route, budget) for route in named if route is not Route.FULL for budget in sizes]
    if not arms:
        raise ValueError(
            f"routes is '{routes}' and budgets is '{budgets}'; there must be something to compare with full"
        )
    return tuple(dict.fromkeys((BASELINE, *arms)))


def budget_of(word: str) -> Budget:
    """Raises ValueError."""
    if word == DEFAULT:
        return Budget()
    if word.isdecimal() and int(word) > 1:
        return Budget(tokens=int(word))
    try:
        share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ValueError(f"budgets has '{word}'; each must be {_LIMIT}")
    return Budget(share=share)


def _route(word: str) -> Route:
    if word not in tuple(Route):
        raise ValueError(f"routes has '{word}'; each must be one of {', '.join(Route)}")
    return Route(word)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
