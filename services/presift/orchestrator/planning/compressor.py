"""Compression: a compressed prompt from the cache, from a request under way, or from the draft; verified before use."""

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
from presift.orchestrator.domain.ports import Draft, MaskRejected, Score
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.planning.mask_validation import ScoringJob, check_draft, check_prompt
from presift.orchestrator.routing.decision import CacheOutcome
from presift.telemetry.tracing import current_span_ref, link


@dataclass(frozen=True, slots=True)
class CompressionResult:
    """A compressed prompt that was verified, where it came from, and milliseconds per stage: `draft_queue_ms` is what
    the draft let it wait, a part of `draft_ms`."""

    prompt: CompressedPrompt
    cache: CacheOutcome
    cache_ms: float
    draft_ms: float
    draft_queue_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class _Found:
    prompt: CompressedPrompt
    hit: bool
    cache_ms: float
    draft_ms: float = 0.0
    draft_queue_ms: float = 0.0


class Compressor:
    """Simultaneous requests for one prompt cost one draft pass, in this process and (by lease) across processes."""

    def __init__(self, draft: Draft, store: Store, lease: BuildLock, *, draft_timeout_s: float) -> None:
        self._draft = draft
        self._store = store
        self._lease = lease
        self._draft_timeout_s = draft_timeout_s
        self._flights: SingleFlight[_Found] = SingleFlight()

    async def compress(self, scoring: ScoringJob, missed: asyncio.Event | None = None) -> CompressionResult:
        """`missed` is set once the cache has nothing and the draft is asked for this caller.

        Raises DraftChanged, MaskRejected, or what the draft port raises.
        """
        digest = self._key(scoring).digest()
        with self._joining(digest) as current:
            work = partial(self._find, digest, scoring, missed or asyncio.Event())
            found, shared = await self._flights.run(digest, work)
            link(current, found.prompt.made_in)
        check_prompt(found.prompt, scoring)
        use = CacheOutcome.HIT if found.hit else CacheOutcome.SHARED if shared else CacheOutcome.MISS
        return CompressionResult(found.prompt, use, found.cache_ms, found.draft_ms, found.draft_queue_ms)

    async def explain(self, scoring: ScoringJob) -> tuple[CompressionResult, NDArray[np.float32] | None]:
        """The draft's own answer with its importance, float32[prompt_tokens]: past the cache, which holds none."""
        started = time.perf_counter()
        scored = await self._score(scoring, include_importance=True)
        draft_ms = (time.perf_counter() - started) * 1000
        return CompressionResult(
            scored.prompt, CacheOutcome.NOT_USED, 0.0, draft_ms, scored.queue_ms
        ), scored.importance

    def _joining(self, digest: str) -> AbstractContextManager[Span]:
        """The span of who waits for another's work; whose own it is has spans of its stages."""
        return stage("cache.join") if self._flights.is_under_way(digest) else nullcontext(INVALID_SPAN)

    def _key(self, scoring: ScoringJob) -> PromptKey:
        tokens, draft, target = scoring.tokens, scoring.draft, scoring.target
        crossed = "" if draft.shares_vocabulary(target) else target.tokenizer_fingerprint
        return PromptKey(tokens.ids, scoring.policy, tokens.protected, 0, draft, tokens.salt, crossed)

    async def _find(self, digest: str, scoring: ScoringJob, missed: asyncio.Event) -> _Found:
        started = time.perf_counter()
        try:
            held = await self._look_up(digest)
        except asyncio.CancelledError:
            await self._lease.release(digest)  # it may have been claimed just now
            raise
        looked_up = time.perf_counter()
        cache_ms = (looked_up - started) * 1000
        # A value that verifies but breaks a rule (another version's, say) must not be met again until its TTL ends.
        if held is not None and _is_usable(held, scoring):
            return _Found(held, True, cache_ms)
        missed.set()
        try:
            scored = await self._score(scoring)
            draft_ms = (time.perf_counter() - looked_up) * 1000
            # Before the flight ends: whoever comes next must find it here.
            with stage("cache.put"):
                await self._store.put(digest, scored.prompt)
        finally:
            await self._lease.release(digest)
        return _Found(scored.prompt, False, cache_ms, draft_ms, scored.queue_ms)

    async def _look_up(self, digest: str) -> CompressedPrompt | None:
        """What the cache has; None makes it ours to compute, for all processes."""
        with stage("cache.get") as current:
            found = await self._store.get(digest)
            link(current, None if found is None else found.made_in)
        if found is not None:
            return found
        with stage("cache.claim") as current:
            found = await self._lease.claim(digest)
            link(current, None if found is None else found.made_in)
        return found

    async def _score(self, scoring: ScoringJob, *, include_importance: bool = False) -> Score:
        with stage("score"):
            made_in = current_span_ref()
            scored = await self._draft.score(
                scoring.tokens.ids,
                scoring.policy,
                scoring.tokens.protected,
                include_importance=include_importance,
                timeout_s=self._draft_timeout_s,
            )
        check_draft(scored.prompt.draft, scoring.draft)
        check_prompt(scored.prompt, scoring)
        return replace(scored, prompt=replace(scored.prompt, made_in=made_in))


def _is_usable(prompt: CompressedPrompt, scoring: ScoringJob) -> bool:
    try:
        check_prompt(prompt, scoring)
    except MaskRejected:
        return False
    return True
