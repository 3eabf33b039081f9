"""Answers a sampled prompt in full and compressed, in the background, without counting as a caller's request."""

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

_IN_FULL = RouteChoice(Route.FULL, Reason.REQUESTED, "quality guard")


class ShadowAnswers:
    """Uses the caller's salt, so that shadows and requests of one tenant share caches, and tenants do not."""

    def __init__(
        self,
        target: Target,
        draft_stage: DraftStage,
        compressor: Compressor,
        estimator: CostEstimator,
        *,
        defaults: Defaults,
    ) -> None:
        self._target = target
        self._draft_stage = draft_stage
        self._compressor = compressor
        self._estimator = estimator
        self._defaults = defaults  # only for what depends on the draft, which no policy file changes

    async def compare(self, sample: Sample) -> Agreement:
        """Compares both answers; generates what the caller did not get. Raises what draft and target ports raise."""
        compressed = sample.answer_by(sample.route)
        if compressed is None:
            compressed = await self._answer(await self._compressed_plan(sample), sample.sampling)
        full = sample.answer_by(Route.FULL)
        if full is None:
            full_plan = replace(plan_of(_IN_FULL, None, 0.0, _prompt(sample.plan)), at=sample.plan.at)
            full = await self._answer(full_plan, sample.sampling)
        return agreement(compressed, full)

    async def _compressed_plan(self, sample: Sample) -> Plan:
        """The plan of the caller's request or, if its route was switched off, the one it would have had."""
        plan, avoided = sample.plan, sample.plan.avoided
        if avoided is None:
            return plan
        prompt = _prompt(plan)
        scoring = self._draft_stage.scoring(avoided, prompt.tokens, self._defaults)
        compressed = await self._compressor.compress(scoring)
        return replace(plan_of(replace(avoided, policy=scoring.policy), compressed, 0.0, prompt), at=plan.at)

    async def _answer(self, plan: Plan, sampling: Sampling) -> tuple[int, ...]:
        answer, began = list[int](), self._estimator.now
        stream = self._target.generate(plan.read_ids, sampling, plan.salt, None, plan.kv_plan, at=plan.at)
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Usage):
                    self._estimator.observe_prefix(plan, event, answer, began)
                else:
                    answer.extend(event)
        return tuple(answer)


def _prompt(plan: Plan) -> TokenizedPrompt:
    if plan.prompt_ids is None:
        raise InternalError("a plan without its prompt")
    return TokenizedPrompt(Tokenized(plan.prompt_ids, plan.protected, plan.salt), plan.decision.target, 0.0)
