"""Workloads: requests per second, prompt lengths, and the work of draft and target that each length causes.

The orchestrator's own code chooses the routes, so a plan cannot disagree with it.
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

MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Length:
    """The share of the requests whose prompts have this many tokens."""

    tokens: int
    share: float


@dataclass(frozen=True, slots=True)
class Workload:
    """`rate`: requests per second; `mix`: lengths whose shares sum to 1; `cache_hits`: the share of the compressed
    prompts that are in the cache and need no draft. Raises InvalidRequest."""

    rate: float
    mix: tuple[Length, ...]
    answer_tokens: int = 256
    cache_hits: float = 0.0

    def __post_init__(self) -> None:
        _check("rate", self.rate, 0 < self.rate <= 1e6, "above 0 and at most 1e6 requests a second")
        _check("answer_tokens", self.answer_tokens, 1 <= self.answer_tokens <= 1e6, "1 to 1e6")
        _check("cache_hits", self.cache_hits, 0 <= self.cache_hits <= 1, "0 to 1")
        for length in self.mix:
            _check("mix", length.tokens, 1 <= length.tokens <= MAX_TOKENS, f"1 to {MAX_TOKENS} tokens")
            _check("mix", length.share, 0 < length.share <= 1, "a share above 0 and at most 1")
        total = sum(length.share for length in self.mix)
        _check("mix", round(total, 6), math.isclose(total, 1, abs_tol=1e-3), "1, the sum of all shares")


def _check(field: str, value: float, holds: bool, limit: str) -> None:
    if not holds:
        raise InvalidRequest(field, value, limit)


def mix_of(text: str) -> tuple[Length, ...]:
    """The mix in a text such as `2000:0.5,16000:0.5`; a length without a share is all. Raises InvalidRequest."""
    lengths = []
    for part in text.split(","):
        tokens, _, share = part.strip().partition(":")
        try:
            lengths.append(Length(int(tokens), float(share) if share else 1.0))
        except ValueError:
            raise InvalidRequest("mix", part.strip(), "TOKENS:SHARE, separated by commas") from None
    return tuple(lengths)


@dataclass(frozen=True, slots=True)
class LengthWork:
    """The work of requests of one length: seconds of a draft (0 if none is needed) and of a target until the first
    token, prompt tokens read, KV tokens held while reading (`peak_tokens`) and while decoding (`held_tokens`)."""

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
class RequestOptions:
    """What callers request: a route (None is AUTO) and a budget. `context_tokens`: the target's context."""

    route: Route | None = None
    budget: Budget = Budget()  # noqa: RUF009 (frozen)
    context_tokens: int = 131_072


def length_work(
    workload: Workload, options: RequestOptions, speeds: StageCosts, defaults_for: Callable[[int], EffectiveDefaults]
) -> tuple[LengthWork, ...]:
    """The work of each length of the mix. Raises PresiftError for a prompt that cannot be answered."""
    return tuple(_work_of(length, workload, options, speeds, defaults_for(length.tokens)) for length in workload.mix)


def _work_of(
    length: Length, workload: Workload, options: RequestOptions, speeds: StageCosts, effective: EffectiveDefaults
) -> LengthWork:
    defaults = effective.defaults
    inputs = RoutingInputs(
        prompt_tokens=length.tokens,
        must_keep=min(length.tokens, defaults.spec_pc.window),
        must_keep_kv=min(length.tokens - 1, defaults.spec_kv.window),
        reserved_tokens=workload.answer_tokens,
        context_tokens=options.context_tokens,
        supported=frozenset(Route),
        defaults=defaults,
        wanted=options.route,
        budget=effective.complete_budget(options.budget),
        state=SystemState(speeds, prefills=True),
    )
    choice = choose(inputs)
    assert choice.forecast is not None
    work = choice.forecast
    scores_kv = choice.route in KV_DROPPING_ROUTES
    return LengthWork(
        tokens=length.tokens,
        share=length.share,
        route=choice.route,
        draft_s=work.draft_work_ms / 1e3,
        target_s=(work.prefill_work_ms + work.target_work_ms) / 1e3,
        read_tokens=work.read_tokens,
        # While KV is selected, the target holds all tokens read and the selected ones.
        peak_tokens=work.read_tokens + (work.kv_tokens if scores_kv else 0),
        held_tokens=work.kv_tokens,
        ttft_s=work.ttft_ms / 1e3,
    )


def weighted_mean(work: Sequence[LengthWork], value: Callable[[LengthWork], float]) -> float:
    """The mean of a value over all requests."""
    return sum(each.share * value(each) for each in work)
