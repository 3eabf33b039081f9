"""Answers one prompt twice in the background, in full and compressed, without touching callers' metrics."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

from presift.core.errors import InternalError
from presift.core.plan import Route
from presift.orchestrator.domain.ports import Target, Usage
from presift.orchestrator.domain.request import Sampling
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.draft_stage import DraftStage
from presift.orchestrator.planning.plan_builder import TokenizedPrompt, plan_of
from presift.orchestrator.prompt.tokenizer import Tokenized
from presift.orchestrator.quality.sampler import Sample
from presift.orchestrator.routing.agreement import Agreement, agreement
from presift.orchestrator.routing.choice import Defaults, Reason, RouteChoice
from presift.orchestrator.routing.decision import Plan

_IN_FULL = RouteChoice(Route.FULL, Reason.REQUESTED, "the quality guard's")


class ShadowAnswers:
    """Answers both ways under the caller's salt: what a shadow reads may serve the same tenant, and vice versa."""

    def __init__(
        self,
        target: Target,
        drafter: DraftStage,
        compressor: Compressor,
        economy: CostEstimator,
        *,
        defaults: Defaults,
    ) -> None:
        self._target = target
        self._drafter = drafter
        self._compressor = compressor
        self._economy = economy
        self._defaults = defaults  # for what depends on the draft alone: no policy file changes that

    async def compare(self, sample: Sample) -> Agreement:
        """What the caller has not been answered already is answered now. Raises what draft and target ports raise."""
        compressed = sample.answer_by(sample.route)
        if compressed is None:
            compressed = await self._answer(await self._compressed(sample), sample.sampling)
        full = sample.answer_by(Route.FULL)
        if full is None:
            in_full = replace(plan_of(_IN_FULL, None, 0.0, _origin(sample.plan)), at=sample.plan.at)
            full = await self._answer(in_full, sample.sampling)
        return agreement(compressed, full)

    async def _compressed(self, sample: Sample) -> Plan:
        """The plan that the caller's request had, or would have had."""
        plan, avoided = sample.plan, sample.plan.avoided
        if avoided is None:
            return plan
        origin = _origin(plan)
        scoring = self._drafter.scoring(avoided, origin.tokens, self._defaults)
        compressed = await self._compressor.compress(scoring)
        return replace(plan_of(replace(avoided, policy=scoring.policy), compressed, 0.0, origin), at=plan.at)

    async def _answer(self, plan: Plan, sampling: Sampling) -> tuple[int, ...]:
        found, began = list[int](), self._economy.now
        stream = self._target.generate(plan.read_ids, sampling, plan.salt, None, plan.kv_plan, at=plan.at)
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Usage):
                    self._economy.observe_prefix(plan, event, found, began)
                else:
                    found.extend(event)
        return tuple(found)


def _origin(plan: Plan) -> TokenizedPrompt:
    if plan.prompt_ids is None:
        raise InternalError("a plan without its prompt")
    return TokenizedPrompt(Tokenized(plan.prompt_ids, plan.protected, plan.salt), plan.decision.target, 0.0)
