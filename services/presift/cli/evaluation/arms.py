"""The arms of a comparison: each route with each budget, `full`, and the router's own choice. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from presift.core.plan import Route
from presift.core.policies import KV_DROPPING_ROUTES, POLICIES

DEFAULT = "default"
# Not a route: the router chooses one.
AUTO = "auto"
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
    """A route with a budget. `full` and AUTO have none: AUTO is asked as by callers who leave the choice to presift."""

    route: str
    budget: Budget | None = None

    @property
    def name(self) -> str:
        """For people, and unique among the arms."""
        return str(self.route) if self.budget is None else f"{self.route} {self.budget}"

    @property
    def is_relative(self) -> bool:
        """Whether its options depend on the length of the prompt."""
        return self.budget is not None and self.budget.share is not None

    def options(self, prompt_tokens: int | None) -> dict[str, Any]:
        """The client's options: the route, and max_kv_tokens if the route drops KV, else max_prompt_tokens."""
        limit = None if self.budget is None else self.budget.limit(prompt_tokens)
        name = "max_kv_tokens" if self.route in KV_DROPPING_ROUTES else "max_prompt_tokens"
        return {"route": str(self.route)} | ({} if limit is None else {name: limit})


BASELINE = Arm(Route.FULL)


def arms_of(routes: str, budgets: str) -> tuple[Arm, ...]:
    """`full`, then each route of a list separated by commas with each budget, AUTO without. Raises ValueError."""
    named = [_route(word) for word in _words(routes)]
    sizes = [budget_of(word) for word in _words(budgets)]
    sizes_of: dict[str, Sequence[Budget | None]] = {Route.FULL: (), AUTO: (None,)}
    arms = [Arm(route, budget) for route in named for budget in sizes_of.get(route, sizes)]
    if not arms:
        raise ValueError(
            f"routes is '{routes}' and budgets is '{budgets}'; there must be something to compare with full"
        )
    return tuple(dict.fromkeys((BASELINE, *arms)))


def readers_of(route: str) -> frozenset[str]:
    """Which of "draft" and "target" read the whole prompt, and so have it in their caches afterwards. With AUTO it may
    be both."""
    if route == Route.FULL:
        return frozenset({"target"})
    by_draft_alone = {each for each, policy in POLICIES.items() if not policy.reads_whole_prompt}
    return frozenset({"draft"} if route in by_draft_alone else {"draft", "target"})


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


def _route(word: str) -> str:
    if word not in (AUTO, *Route):
        raise ValueError(f"routes has '{word}'; each must be one of {', '.join((AUTO, *Route))}")
    return word


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
