"""Samples: requests whose answer is compared with that of the other way, compressed or full. Token ids only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.orchestrator.domain.request import Sampling
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.quality_gate import LengthBand, length_band


@dataclass(slots=True, eq=False)
class Sample:
    """A request that was answered. `answer` is the caller's answer if it was greedy, cut to the compared length;
    `sampling` is that of both answers: greedy, and cut."""

    plan: Plan
    sampling: Sampling
    answer: tuple[int, ...] | None

    @property
    def route(self) -> Route:
        """The route that is judged: the one that compressed, or would have but for its switch."""
        avoided = self.plan.avoided
        return self.plan.decision.route if avoided is None else avoided.route

    @property
    def band(self) -> LengthBand:
        return length_band(self.plan.decision.prompt_tokens)

    def answer_by(self, route: Route) -> tuple[int, ...] | None:
        """The caller's own answer, if it was given by this route and can be compared."""
        return self.answer if self.plan.decision.route is route else None


@dataclass(frozen=True, slots=True)
class Sampler:
    """Takes a `share` of the requests, 0..1, and compares at most `max_new_tokens` of each. Raises InvalidRequest."""

    share: float = 0.01
    max_new_tokens: int = 64
    random: Random = field(default_factory=Random)

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InvalidRequest("guard_share", self.share, "0..1")
        if self.max_new_tokens < 1:
            raise InvalidRequest("guard_max_new_tokens", self.max_new_tokens, ">= 1")

    def sample(self, plan: Plan, sampling: Sampling, answer: Sequence[int]) -> Sample | None:
        """None for most, for what no route compresses, for what full cannot answer, and for what the caller's own
        limits made tighter: how those are answered shall decide for nobody else."""
        compresses = plan.avoided is not None or plan.decision.route is not Route.FULL
        cut = min(sampling.max_new_tokens, self.max_new_tokens)
        fits = plan.decision.prompt_tokens + cut <= plan.decision.target.context_tokens
        if not compresses or not fits or plan.is_tighter or self.random.random() >= self.share:
            return None
        greedy = replace(sampling, max_new_tokens=cut, temperature=0.0, top_p=None, top_k=None, seed=None)
        return Sample(plan, greedy, tuple(answer[:cut]) if sampling.is_greedy else None)
