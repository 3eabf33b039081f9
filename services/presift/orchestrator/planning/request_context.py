"""Requests as they are decided on: tokenised, checked against limits, assigned to a target replica."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.spans import must_keep
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.domain.limits import check_tokens
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, TargetInfo
from presift.orchestrator.domain.request import Request
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.plan_builder import TokenizedPrompt
from presift.orchestrator.planning.replica_picker import ReplicaPicker
from presift.orchestrator.planning.tightness import is_tighter
from presift.orchestrator.prompt.tokenizer import PromptTokenizer, Tokenized
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.choice import Defaults, Facts
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.quality_gate import QualityGate

# Told the prompt's tokens; raises where its caller may not use them.
Spend = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request, read, its budget completed by its terms. `started` by the performance counter, in seconds; `at` is
    the target's replica."""

    request: Request
    defaults: Defaults
    origin: TokenizedPrompt
    facts: Facts
    started: float
    at: ReplicaRef = ANY_REPLICA


class RequestReader:
    """Makes cases of requests, and says what is known of them now."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        models: ModelRegistry,
        terms: PolicySource,
        economy: CostEstimator,
        *,
        switches: QualityGate | None = None,
        usher: ReplicaPicker | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._models = models
        self._terms = terms
        self._economy = economy
        self._switches = QualityGate() if switches is None else switches
        self._usher = usher

    async def read(
        self, request: Request, target: TargetInfo, spend: Spend | None, waited_s: float = 0.0
    ) -> RequestContext:
        """The request's case, `waited_s` after its arrival. Raises InvalidRequest, PromptTooLong, what `spend` does."""
        started = time.perf_counter()
        tokens = await self._tokenizer.tokenize(request.prompt, request.salt)
        check_tokens(int(tokens.ids.size))
        check_vocabulary(tokens, target)
        request.kv.check_continues(int(tokens.ids.size))
        tokenize_ms = (time.perf_counter() - started) * 1000
        if spend is not None:
            await spend(int(tokens.ids.size))
        origin = TokenizedPrompt(tokens, target.model, tokenize_ms)
        terms = self._terms.table.lookup(int(tokens.ids.size), target.model.id, request.tenant)
        request = replace(request, budget=terms.complete_budget(request.budget))
        facts = self._facts(request, tokens, target, terms.defaults)
        return self._seated(RequestContext(request, terms.defaults, origin, facts, started - waited_s))

    def holding(self, case: RequestContext) -> AbstractContextManager[None]:
        """The case's seat is taken, until the block ends."""
        return nullcontext() if self._usher is None else self._usher.holding(case.at)

    def question(self, case: RequestContext) -> Question:
        """What is to be chosen by, with costs as they are predicted now."""
        request, tokens, facts = case.request, case.origin.tokens, case.facts
        spent_ms = (time.perf_counter() - case.started) * 1000
        outlook = self.outlook(tokens.ids, case, spent_ms)
        return Question(request.budget, request.kv, replace(facts, outlook=outlook), case.defaults)

    def outlook(self, ids: NDArray[np.uint32], case: RequestContext, spent_ms: float = 0.0) -> SystemState:
        """What is expected of a prompt of these tokens at the case's replica."""
        target, draft, replica = case.origin.target, self._models.draft, case.at.replica
        salt = case.origin.tokens.salt
        if not replica:
            return self._economy.outlook(ids, target, draft, spent_ms, salt=salt)
        return self._economy.outlooks(ids, target, draft, (replica,), spent_ms, salt=salt)[replica]

    def is_tighter(self, plan: Plan, case: RequestContext) -> bool:
        """Whether less is kept than everyone gets who asks for nothing."""
        everyones = self._terms.table.lookup(case.facts.prompt_tokens, case.origin.target.id)
        policy = plan.decision.policy if plan.avoided is None else plan.avoided.policy
        return policy is not None and is_tighter(policy, everyones, case.facts.kv_page_tokens)

    def _seated(self, case: RequestContext) -> RequestContext:
        """With its place among the target's replicas, which all that follows is predicted for."""
        if self._usher is None or not self._usher.has_choice:
            return case
        question = self.question(case)
        seat = self._usher.seat(case.request.route, question, case.origin.tokens, case.origin.target)
        return replace(case, at=seat)

    def _facts(self, request: Request, tokens: Tokenized, target: TargetInfo, defaults: Defaults) -> Facts:
        prompt_tokens = int(tokens.ids.size)
        kept = must_keep(tokens.protected, prompt_tokens, defaults.spec_pc.window)
        # Of the KV all but the final token's, which comes on top.
        kept_kv = must_keep(tokens.protected, prompt_tokens, defaults.spec_kv.window + 1)[:-1]
        return Facts(
            prompt_tokens=prompt_tokens,
            must_keep=int(np.count_nonzero(kept)),
            must_keep_kv=int(np.count_nonzero(kept_kv)),
            max_new_tokens=request.sampling.max_new_tokens,
            context_tokens=target.model.context_tokens,
            supported=target.supported,
            unsupported=target.unsupported,
            kv_page_tokens=target.kv_page_tokens,
            kv_pool_tokens=target.kv_pool_tokens,
            off=self._switches.off(prompt_tokens),
            draft_context_tokens=self._draft_context_tokens(target),
        )

    def _draft_context_tokens(self, target: TargetInfo) -> int:
        draft = self._models.draft
        return draft.context_tokens if draft is not None and draft.shares_vocabulary(target.model) else 0


def check_vocabulary(tokens: Tokenized, target: TargetInfo) -> None:
    """Raise InvalidRequest if there is no token, or one that is not the target's."""
    if tokens.ids.size == 0:  # a normaliser may leave nothing of a text
        raise InvalidRequest("prompt", "empty", "at least one token")
    highest = int(tokens.ids.max())
    if highest >= target.model.vocabulary_size:
        raise InvalidRequest("prompt.token_ids", highest, f"< {target.model.vocabulary_size} (the vocabulary)")
