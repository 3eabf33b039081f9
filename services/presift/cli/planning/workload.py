"""Workloads: how many requests come, of which lengths, and what each makes draft, target and orchestrator do.

What a prompt gets is asked of the code that decides in the orchestrator, so a plan cannot disagree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import KV_DROPPING_ROUTES
from presift.orchestrator.config.overrides import EffectiveDefaults
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.routing.choice import RoutingInputs
from presift.orchestrator.routing.cost_model import StageCosts, SystemState
from presift.orchestrator.routing.router import choose

MOST_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Length:
    """A share of the requests has prompts of so many tokens."""

    tokens: int
    share: float


@dataclass(frozen=True, slots=True)
class Workload:
    """`rate` requests a second; shares of `mix` sum to 1; `cache_hits`: the share of the compressed prompts that the
    cache knows, for which no draft is asked. Raises InvalidRequest, naming field, value and limit."""

    rate: float
    mix: tuple[Length, ...]
    answer_tokens: int = 256
    cache_hits: float = 0.0

    def __post_init__(self) -> None:
        _check("rate", self.rate, 0 < self.rate <= 1e6, "above 0 and at most 1e6 requests a second")
        _check("answer_tokens", self.answer_tokens, 1 <= self.answer_tokens <= 1e6, "1 to 1e6")
        _check("cache_hits", self.cache_hits, 0 <= self.cache_hits <= 1, "0 to 1")
        for length in self.mix:
            _check("mix", length.tokens, 1 <= length.tokens <= MOST_TOKENS, f"1 to {MOST_TOKENS} tokens")
            _check("mix", length.share, 0 < length.share <= 1, "shares above 0 and at most 1")
        total = sum(length.share for length in self.mix)
        _check("mix", round(total, 6), math.isclose(total, 1, abs_tol=1e-3), "shares that sum to 1")


def _check(field: str, value: float, holds: bool, limit: str) -> None:
    if not holds:
        raise InvalidRequest(field, value, limit)


def mix_of(text: str) -> tuple[Length, ...]:
    """`2000:0.5,16000:0.5`: tokens and share; a single number is all. Raises InvalidRequest."""
    found = []
    for part in text.split(","):
        tokens, _, share = part.strip().partition(":")
        try:
            found.append(Length(int(tokens), float(share) if share else 1.0))
        except ValueError:
            raise InvalidRequest("mix", part.strip(), "TOKENS:SHARE, comma between") from None
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Demand:
    """What requests of one length take: seconds of a draft (0 where none is asked) and of a target until the first
    token, prompt tokens that are read, KV tokens held while reading and while decoding."""

    tokens: int
    share: float
    route: Route
    draft_s: float
    target_s: float
    read_tokens: int
    peak_tokens: int
    held_tokens: int
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Wish:
    """What callers ask for: a route (None is AUTO) and a budget, in a context of so many tokens."""

    route: Route | None = None
    budget: Budget = Budget()  # noqa: RUF009 (frozen)
    context_tokens: int = 131_072


def demands(
    workload: Workload, wish: Wish, speeds: StageCosts, terms_for: Callable[[int], EffectiveDefaults]
) -> tuple[Demand, ...]:
    """One for each length of the mix. Raises PresiftError for a prompt that cannot be answered."""
    return tuple(_demand(length, workload, wish, speeds, terms_for(length.tokens)) for length in workload.mix)


def _demand(length: Length, workload: Workload, wish: Wish, speeds: StageCosts, terms: EffectiveDefaults) -> Demand:
    defaults = terms.defaults
    inputs = RoutingInputs(
        prompt_tokens=length.tokens,
        must_keep=min(length.tokens, defaults.spec_pc.window),
        must_keep_kv=min(length.tokens - 1, defaults.spec_kv.window),
        max_new_tokens=workload.answer_tokens,
        context_tokens=wish.context_tokens,
        supported=frozenset(Route),
        defaults=defaults,
        wanted=wish.route,
        budget=terms.complete_budget(wish.budget),
        state=SystemState(speeds, prefills=True),
    )
    choice = choose(inputs)
    assert choice.forecast is not None
    work = choice.forecast
    scores_kv = choice.route in KV_DROPPING_ROUTES
    return Demand(
        tokens=length.tokens,
        share=length.share,
        route=choice.route,
        draft_s=work.draft_work_ms / 1e3,
        target_s=(work.prefill_work_ms + work.target_work_ms) / 1e3,
        read_tokens=work.read_tokens,
        # While KV is chosen, what was read and what is kept stand side by side.
        peak_tokens=work.read_tokens + (work.kv_tokens if scores_kv else 0),
        held_tokens=work.kv_tokens,
        ttft_s=work.ttft_ms / 1e3,
    )


def mean(demands: Sequence[Demand], of: Callable[[Demand], float]) -> float:
    """Of a request."""
    return sum(each.share * of(each) for each in demands)
