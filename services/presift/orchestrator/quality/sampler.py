"""Chooses the answered requests to compare. Token ids only, no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from presift.core.answer import AnswerFormat
from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.core.plan import Route
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.quality_gate import LengthBand, length_band


@dataclass(slots=True, eq=False)
class Sample:
    """A request that was answered.

    `sampling` applies to both answers: greedy, and no longer than what is compared. So does `answer_format`, which may
    force a tool call. `answer`: the first token ids of the caller's answer, or None if that was not greedy, so that it
    cannot be compared.
    """

    plan: Plan
    sampling: Sampling
    answer_format: AnswerFormat | None
    answer: tuple[int, ...] | None

    @property
    def route(self) -> Route:
        """The route to judge: the one that compressed, or that the request would have taken if it were switched on."""
        other = self.plan.switched_off_choice
        return self.plan.decision.route if other is None else other.route

    @property
    def band(self) -> LengthBand:
        return length_band(self.plan.decision.prompt_tokens)

    def answer_by(self, route: Route) -> tuple[int, ...] | None:
        """The caller's own answer if it can be compared and took this route; otherwise None."""
        return self.answer if self.plan.decision.route is route else None


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples a `share` of the requests, 0..1, and at most `max_new_tokens` of each answer. Raises InvalidRequest."""

    share: float = 0.01
    max_new_tokens: int = 256
    random: Random = field(default_factory=Random)

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InvalidRequest("guard_share", self.share, "0..1")
        if self.max_new_tokens < 1:
            raise InvalidRequest("guard_max_new_tokens", self.max_new_tokens, ">= 1")

    def sample(
        self, plan: Plan, sampling: Sampling, answer_format: AnswerFormat | None, answer: Sequence[int]
    ) -> Sample | None:
        """None for most requests, and for those that cannot be compared: without compression, or too long for full.

        Also None if the caller's own limits compress more than the defaults: such answers say nothing about others.
        """
        compresses = plan.switched_off_choice is not None or plan.decision.route is not Route.FULL
        max_new_tokens = min(sampling.max_new_tokens, self.max_new_tokens)
        fits = plan.decision.prompt_tokens + max_new_tokens <= plan.decision.target.context_tokens
        if not compresses or not fits or plan.is_tighter or self.random.random() >= self.share:
            return None
        greedy = replace(sampling, max_new_tokens=max_new_tokens, temperature=0.0, top_p=None, top_k=None, seed=None)
        least = None if sampling.min_new_tokens is None else min(sampling.min_new_tokens, max_new_tokens)
        greedy = replace(greedy, min_new_tokens=least, top_logprobs=None, prompt_logprobs=False)
        return Sample(plan, greedy, answer_format, tuple(answer[:max_new_tokens]) if sampling.is_greedy else None)
