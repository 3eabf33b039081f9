"""Planning: from a request to a plan. Trouble on the draft's side ends in the full context, never in an error,
unless the full prompt cannot fit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np

from presift.core.errors import (
    DeadlineExceeded,
    DraftUnavailable,
    InternalError,
    InvalidRequest,
    Overloaded,
    PresiftError,
    PromptTooLong,
)
from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecPc
from presift.orchestrator.compression import Compressed, Compressor, DraftChanged, must_keep
from presift.orchestrator.decision import Decision, Plan
from presift.orchestrator.models import Models
from presift.orchestrator.ports import MaskRejected, TargetInfo
from presift.orchestrator.request import Budget, Request
from presift.orchestrator.routing import Choice, Defaults, Facts, Reason, check_fits, choose
from presift.orchestrator.tokenizer import PromptTokenizer, Tokenized
from presift.rpc.metrics import count, record
from presift.rpc.telemetry import span

# Of the caller's deadline: what is left must do for reading the prompt in full.
DRAFT_SHARE = 0.5

log = logging.getLogger(__name__)

# First match wins; any other trouble counts as unavailability.
_REASONS: tuple[tuple[type[PresiftError], Reason], ...] = (
    (DraftChanged, Reason.DRAFT_CHANGED),
    (MaskRejected, Reason.MASK_REJECTED),
    (Overloaded, Reason.DRAFT_OVERLOADED),
    (DeadlineExceeded, Reason.DRAFT_TIMEOUT),
    (PresiftError, Reason.DRAFT_UNAVAILABLE),
)


class Planner:
    """Tokenise, protect, route, compress."""

    def __init__(self, tokenizer: PromptTokenizer, models: Models, compressor: Compressor, defaults: Defaults) -> None:
        self._tokenizer = tokenizer
        self._models = models
        self._compressor = compressor
        self._defaults = defaults

    async def plan(self, request: Request, target: TargetInfo, time_left_s: float | None = None) -> Plan:
        """Raises InvalidRequest, PromptTooLong, BudgetExceeded, RouteUnsupported; DraftUnavailable only where the full
        prompt cannot fit (or may not: `strict`)."""
        tokens, tokenize_ms = await self._tokenize(request, target)
        facts = self.facts(request, tokens, target)
        choice = choose(request.route, request.budget, facts, self._defaults)
        compressed = None
        if choice.policy is not None:
            choice, compressed = await self._compress(choice, tokens, facts, request.budget, time_left_s)
        plan = _plan(choice, compressed, tokens, target, tokenize_ms)
        _count(plan.decision)
        return plan

    async def explain(self, request: Request, target: TargetInfo) -> Plan:
        """The same plan with importance, always from the draft. Here its trouble is an error."""
        tokens, tokenize_ms = await self._tokenize(request, target)
        choice = choose(request.route, request.budget, self.facts(request, tokens, target), self._defaults)
        if choice.policy is None:
            return _plan(choice, None, tokens, target, tokenize_ms)
        draft = self._models.known_draft()
        choice = self._for_draft(choice, draft)
        try:
            compressed, importance = await self._compressor.explain(tokens, _policy(choice), draft)
        except DraftChanged:
            self._models.draft_changed()
            raise
        return replace(_plan(choice, compressed, tokens, target, tokenize_ms), importance=importance)

    async def _tokenize(self, request: Request, target: TargetInfo) -> tuple[Tokenized, float]:
        started = time.perf_counter()
        with span("tokenize"):
            tokens = await self._tokenizer.tokenize(request.prompt)
        check_vocabulary(tokens, target)
        return tokens, (time.perf_counter() - started) * 1000

    def facts(self, request: Request, tokens: Tokenized, target: TargetInfo) -> Facts:
        """What the choice of a route rests on."""
        prompt_tokens = int(tokens.ids.size)
        kept = must_keep(tokens.protected, prompt_tokens, self._defaults.spec_pc.window)
        return Facts(
            prompt_tokens=prompt_tokens,
            must_keep=int(np.count_nonzero(kept)),
            max_new_tokens=request.sampling.max_new_tokens,
            context_tokens=target.model.context_tokens,
            supported=target.supported,
        )

    async def _compress(
        self, choice: Choice, tokens: Tokenized, facts: Facts, budget: Budget, left_s: float | None
    ) -> tuple[Choice, Compressed | None]:
        try:
            draft = self._models.known_draft()
            choice = self._for_draft(choice, draft)
            async with asyncio.timeout(None if left_s is None else left_s * DRAFT_SHARE):
                return choice, await self._compressor.compress(tokens, _policy(choice), draft)
        except TimeoutError:
            late = DeadlineExceeded(f"no mask after {DRAFT_SHARE:.0%} of the time that the caller gave")
            return self._in_full(late, facts, budget), None
        except PresiftError as error:
            return self._in_full(error, facts, budget), None

    def _for_draft(self, choice: Choice, draft: ModelInfo) -> Choice:
        return replace(choice, policy=self._defaults.for_draft(_policy(choice), draft.layers))

    def _in_full(self, error: PresiftError, facts: Facts, budget: Budget) -> Choice:
        if isinstance(error, DraftChanged):
            self._models.draft_changed()
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        count("presift.fallbacks", reason=reason.value)
        log.warning("answered in full: %s: %s", reason, error.message)
        if budget.strict and budget.capacity is not None:
            raise DraftUnavailable(f"{error.message}; the strict budget allows no full prompt") from error
        try:
            check_fits(facts)
        except PromptTooLong as too_long:
            raise DraftUnavailable(f"{error.message}; and the full prompt does not fit: {too_long.message}") from error
        return Choice(Route.FULL, reason, f"{error.message}; nothing was dropped")


def _policy(choice: Choice) -> SpecPc:
    if choice.policy is None:
        raise InternalError(f"route {choice.route} has no policy")
    return choice.policy


def check_vocabulary(tokens: Tokenized, target: TargetInfo) -> None:
    """Raise InvalidRequest if there is no token, or one that is not the target's."""
    if tokens.ids.size == 0:  # a normaliser may leave nothing of a text
        raise InvalidRequest("prompt", "empty", "at least one token")
    highest = int(tokens.ids.max())
    if highest >= target.model.vocabulary_size:
        raise InvalidRequest("prompt.token_ids", highest, f"< {target.model.vocabulary_size} (the vocabulary)")


def _plan(
    choice: Choice, compressed: Compressed | None, tokens: Tokenized, target: TargetInfo, tokenize_ms: float
) -> Plan:
    prompt_tokens = int(tokens.ids.size)
    kept = np.ones(prompt_tokens, dtype=np.bool_) if compressed is None else compressed.prompt.mask.kept
    decision = Decision(
        route=choice.route,
        reason=choice.reason,
        detail=choice.detail,
        prompt_tokens=prompt_tokens,
        kept_tokens=int(np.count_nonzero(kept)),
        protected_tokens=sum(len(span) for span in tokens.protected),
        target=target.model,
        tokenize_ms=tokenize_ms,
        policy=choice.policy,
        **({} if compressed is None else _provenance(compressed)),
    )
    kept_ids = tokens.ids if compressed is None else tokens.ids[kept]
    return Plan(decision, kept_ids, kept, tokens.protected)


def _provenance(compressed: Compressed) -> dict[str, Any]:
    return {
        "draft": compressed.prompt.draft,
        "coverage": compressed.prompt.coverage,
        "cache": compressed.cache,
        "cache_ms": compressed.cache_ms,
        "draft_ms": compressed.draft_ms,
    }


def _count(decision: Decision) -> None:
    route = decision.route.value
    count("presift.requests", route=route, reason=decision.reason.value)
    count("presift.prompt.tokens", decision.prompt_tokens, route=route)
    count("presift.kept.tokens", decision.kept_tokens, route=route)
    if decision.coverage is not None:
        record("presift.coverage", decision.coverage, route=route)
