"""Compressed prompts: from the cache, from another request that is scoring the same prompt, or from the draft.

Every one is validated before use.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import INVALID_SPAN, Span

from presift.cache.build_lock import BuildLock
from presift.cache.single_flight import SingleFlight
from presift.cache.store import Store
from presift.core.digest import PromptKey
from presift.core.plan import CompressedPrompt
from presift.orchestrator.domain.ports import DraftRequest, DraftScorer, MaskRejected, Score
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.planning.mask_validation import ScoringJob, check_draft, check_prompt
from presift.orchestrator.routing.decision import CacheOutcome
from presift.rpc.deadline import Deadline
from presift.telemetry.tracing import link


@dataclass(frozen=True, slots=True)
class CompressionResult:
    """A validated compressed prompt, its origin, and milliseconds per stage; `draft_queue_ms`, the wait in the draft's
    queue, is a part of `draft_ms`. The draft had kept `draft_cached_tokens` of an earlier prompt."""

    prompt: CompressedPrompt
    cache: CacheOutcome
    cache_ms: float
    draft_ms: float = 0.0
    draft_queue_ms: float = 0.0
    draft_cached_tokens: int = 0


class Compressor:
    """Concurrent requests for one prompt cost one draft pass, in this process and, by the build lock, in all others."""

    def __init__(self, draft: DraftScorer, store: Store, lock: BuildLock, *, draft_timeout_s: float) -> None:
        self._draft = draft
        self._store = store
        self._lock = lock
        self._draft_timeout_s = draft_timeout_s
        self._flights: SingleFlight[CompressionResult] = SingleFlight()

    async def compress(self, job: ScoringJob, missed: asyncio.Event | None = None) -> CompressionResult:
        """`missed` is set when the cache has no value and the draft is asked for this caller.

        Raises DraftChanged, MaskRejected, or an error of the draft port.
        """
        digest = self._key(job).digest()
        with self._joining(digest) as current:
            work = partial(self._find, digest, job, missed or asyncio.Event())
            found, is_shared = await self._flights.run(digest, work)
            link(current, found.prompt.made_in)
        check_prompt(found.prompt, job)
        return replace(found, cache=CacheOutcome.SHARED) if is_shared and found.cache is not CacheOutcome.HIT else found

    async def explain(self, job: ScoringJob) -> tuple[CompressionResult, NDArray[np.float32] | None]:
        """The draft's answer with its importance, float32[prompt_tokens]. Bypasses the cache, which holds none."""
        started = time.perf_counter()
        scored = await self._score(job, include_importance=True)
        draft_ms = (time.perf_counter() - started) * 1000
        result = CompressionResult(
            scored.prompt, CacheOutcome.NOT_USED, 0.0, draft_ms, scored.queue_ms, scored.cached_tokens
        )
        return result, scored.importance

    def _joining(self, digest: str) -> AbstractContextManager[Span]:
        """A span for a request that waits for another one's work; the other one has spans of its stages."""
        return stage("cache.join") if self._flights.is_under_way(digest) else nullcontext(INVALID_SPAN)

    def _key(self, job: ScoringJob) -> PromptKey:
        tokens, draft, target = job.tokens, job.draft, job.target
        crossed = "" if draft.shares_vocabulary(target) else target.tokenizer_fingerprint
        return PromptKey(tokens.ids, job.policy, tokens.protected, 0, draft, tokens.salt, crossed)

    async def _find(self, digest: str, job: ScoringJob, missed: asyncio.Event) -> CompressionResult:
        started = time.perf_counter()
        try:
            held = await self._look_up(digest)
        except asyncio.CancelledError:
            await self._lock.release(digest)  # it may have been claimed just now
            raise
        looked_up = time.perf_counter()
        cache_ms = (looked_up - started) * 1000
        # A value that verifies but breaks a rule, of another version for instance, is replaced.
        if held is not None and _is_usable(held, job):
            return CompressionResult(held, CacheOutcome.HIT, cache_ms)
        outcome = CacheOutcome.MISS if self._store.is_available else CacheOutcome.UNAVAILABLE
        missed.set()
        try:
            scored = await self._score(job)
            draft_ms = (time.perf_counter() - looked_up) * 1000
            # Stored before the flight ends, so that the next request finds it.
            with stage("cache.put"):
                await self._store.put(digest, scored.prompt)
        finally:
            await self._lock.release(digest)
        return CompressionResult(scored.prompt, outcome, cache_ms, draft_ms, scored.queue_ms, scored.cached_tokens)

    async def _look_up(self, digest: str) -> CompressedPrompt | None:
        """The cached value; None if this process must compute it for all."""
        with stage("cache.get") as current:
            found = await self._store.get(digest)
            link(current, None if found is None else found.made_in)
        if found is not None:
            return found
        with stage("cache.claim") as current:
            found = await self._lock.claim(digest)
            link(current, None if found is None else found.made_in)
        return found

    async def _score(self, job: ScoringJob, *, include_importance: bool = False) -> Score:
        tokens = job.tokens
        request = DraftRequest(
            tokens.ids, job.policy, tokens.protected, tokens.salt, include_importance=include_importance
        )
        with stage("score"):
            scored = await self._draft.score(request, Deadline.within(self._draft_timeout_s))
        check_draft(scored.prompt.draft, job.draft)
        check_prompt(scored.prompt, job)
        return scored


def _is_usable(prompt: CompressedPrompt, job: ScoringJob) -> bool:
    try:
        check_prompt(prompt, job)
    except MaskRejected:
        return False
    return True
