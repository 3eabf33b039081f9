"""Answers a sampled prompt in full and compressed, in the background, without counting as a caller's request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from presift.core.plan import Route
from presift.orchestrator.domain.ports import Target, TargetRequest, Usage
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.draft_stage import DraftStage
from presift.orchestrator.planning.plan_builder import replanned_compressed, replanned_undrafted
from presift.orchestrator.prompt.detokenizer import Detokenizer
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.quality.sampler import Sample
from presift.orchestrator.routing.agreement import Agreement, agreement
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.facts import count_facts
from presift.rpc.deadline import NO_DEADLINE

_IN_FULL = RouteChoice(Route.FULL, Reason.REQUESTED, "requested by the quality guard")


class ShadowAnswers:
    """Uses the caller's salt, so that shadows and requests of one tenant share caches, and tenants do not.

    Without a tokenizer's backend, answers have no text and no facts: then only their tokens are compared.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        target: Target,
        draft_stage: DraftStage,
        compressor: Compressor,
        estimator: CostEstimator,
    ) -> None:
        self._tokenizer = tokenizer
        self._target = target
        self._draft_stage = draft_stage
        self._compressor = compressor
        self._estimator = estimator

    async def compare(self, sample: Sample) -> Agreement:
        """Compares both answers; generates what the caller did not get. Raises what draft and target ports raise."""
        compressed = sample.answer_by(sample.route)
        if compressed is None:
            compressed = await self._answer(await self._compressed_plan(sample), sample)
        full = sample.answer_by(Route.FULL)
        if full is None:
            full = await self._answer(replanned_undrafted(sample.plan, _IN_FULL), sample)
        is_cut = len(full) >= sample.sampling.max_new_tokens
        return agreement(compressed, full, count_facts(self._text(compressed), self._text(full), is_cut=is_cut))

    def _text(self, token_ids: Sequence[int]) -> str:
        detokenizer = Detokenizer(self._tokenizer.backend)
        return detokenizer.push(token_ids) + detokenizer.finish()

    async def _compressed_plan(self, sample: Sample) -> Plan:
        """The caller's plan, or the one that the quality gate prevented."""
        plan, choice = sample.plan, sample.plan.switched_off_choice
        if choice is None:
            return plan
        if choice.policy is not None and not choice.policy.needs_draft:
            return replanned_undrafted(plan, choice)
        job = self._draft_stage.job(choice, plan.tokens, plan.decision.target)
        compressed = await self._compressor.compress(job)
        return replanned_compressed(plan, choice, compressed)

    async def _answer(self, plan: Plan, sample: Sample) -> tuple[int, ...]:
        answer, began = list[int](), self._estimator.now
        request = TargetRequest(plan.read_ids, sample.sampling, plan.tokens.salt, plan.kv_plan, sample.answer_format)
        call = self._target.generate(request, NO_DEADLINE, replica=plan.replica)
        async with aclosing(call.read_ahead()) as events:
            async for event in events:
                if isinstance(event, Usage):
                    self._estimator.observe_prefix(plan, event, answer, began)
                else:
                    answer.extend(event.token_ids)
        return tuple(answer)
