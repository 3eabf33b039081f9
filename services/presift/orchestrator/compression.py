"""Compression: a prompt's mask from the cache, from a request under way, or from the draft; verified before use."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.cache.lease import Lease
from presift.cache.single_flight import SingleFlight
from presift.cache.store import Store
from presift.core.digest import PromptKey
from presift.core.errors import DraftUnavailable
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.policies import SpecPc
from presift.core.spans import Span, covered
from presift.orchestrator.decision import CacheUse
from presift.orchestrator.ports import Draft, MaskRejected, Score
from presift.orchestrator.tokenizer import Tokenized
from presift.rpc.telemetry import span


class DraftChanged(DraftUnavailable):
    """The reply came from another model or revision than the key was made for."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """A mask that was verified, where it came from, and milliseconds per stage."""

    prompt: CompressedPrompt
    cache: CacheUse
    cache_ms: float
    draft_ms: float


@dataclass(frozen=True, slots=True)
class _Found:
    prompt: CompressedPrompt
    hit: bool
    cache_ms: float
    draft_ms: float


class Compressor:
    """Simultaneous requests for one prompt cost one draft pass, in this process and (by lease) across processes."""

    def __init__(self, draft: Draft, store: Store, lease: Lease, *, draft_timeout_s: float, salt: str) -> None:
        self._draft = draft
        self._store = store
        self._lease = lease
        self._draft_timeout_s = draft_timeout_s
        self._salt = salt
        self._flights: SingleFlight[_Found] = SingleFlight()

    async def compress(self, tokens: Tokenized, policy: SpecPc, draft: ModelInfo) -> Compressed:
        """Raises DraftChanged, MaskRejected, or what the draft port raises."""
        key = PromptKey(tokens.ids, policy, tokens.protected, lookahead_tokens=0, draft=draft, salt=self._salt)
        digest = key.digest()
        found, shared = await self._flights.run(digest, lambda: self._find(digest, tokens, policy, draft))
        check_mask(found.prompt.mask, tokens, policy)
        use = CacheUse.HIT if found.hit else CacheUse.SHARED if shared else CacheUse.MISS
        return Compressed(found.prompt, use, found.cache_ms, found.draft_ms)

    async def explain(
        self, tokens: Tokenized, policy: SpecPc, draft: ModelInfo
    ) -> tuple[Compressed, NDArray[np.float32] | None]:
        """The draft's own answer with its importance, float32[prompt_tokens]: past the cache, which holds none."""
        started = time.perf_counter()
        scored = await self._score(tokens, policy, draft, include_importance=True)
        draft_ms = (time.perf_counter() - started) * 1000
        return Compressed(scored.prompt, CacheUse.NOT_USED, 0.0, draft_ms), scored.importance

    async def _find(self, digest: str, tokens: Tokenized, policy: SpecPc, draft: ModelInfo) -> _Found:
        started = time.perf_counter()
        try:
            with span("cache"):
                held = await self._store.get(digest) or await self._lease.claim(digest)
        except asyncio.CancelledError:
            await self._lease.release(digest)  # it may have been claimed just now
            raise
        looked_up = time.perf_counter()
        cache_ms = (looked_up - started) * 1000
        # A value that verifies but breaks a rule (another version's, say) must not be met again until its TTL ends.
        if held is not None and _is_usable(held.mask, tokens, policy):
            return _Found(held, True, cache_ms, 0.0)
        try:
            scored = (await self._score(tokens, policy, draft)).prompt
            draft_ms = (time.perf_counter() - looked_up) * 1000
            # Before the flight ends: whoever comes next must find it here.
            await self._store.put(digest, scored)
        finally:
            await self._lease.release(digest)
        return _Found(scored, False, cache_ms, draft_ms)

    async def _score(
        self, tokens: Tokenized, policy: SpecPc, draft: ModelInfo, *, include_importance: bool = False
    ) -> Score:
        with span("score"):
            scored = await self._draft.score(
                tokens.ids,
                policy,
                tokens.protected,
                include_importance=include_importance,
                timeout_s=self._draft_timeout_s,
            )
        check_draft(scored.prompt.draft, draft)
        check_mask(scored.prompt.mask, tokens, policy)
        return scored


def check_draft(replied: ModelInfo, known: ModelInfo) -> None:
    """Raise DraftChanged unless the reply came from the draft that the key names."""
    if replied != known:
        raise DraftChanged(f"the draft is now {replied.id} at {replied.revision[:12]}, not {known.revision[:12]}")


def check_mask(mask: TokenMask, tokens: Tokenized, policy: SpecPc) -> None:
    """Raise MaskRejected unless the mask fits the prompt and the budget and keeps protected spans and window."""
    prompt_tokens = int(tokens.ids.size)
    if mask.prompt_tokens != prompt_tokens:
        raise MaskRejected(f"mask of {mask.prompt_tokens} tokens for a prompt of {prompt_tokens}")
    if mask.kept_tokens > policy.capacity:
        raise MaskRejected(f"mask keeps {mask.kept_tokens} tokens, the budget is {policy.capacity}")
    missing = int(np.count_nonzero(must_keep(tokens.protected, prompt_tokens, policy.window) & ~mask.kept))
    if missing:
        raise MaskRejected(f"mask drops {missing} tokens that are protected or in the window")


def _is_usable(mask: TokenMask, tokens: Tokenized, policy: SpecPc) -> bool:
    try:
        check_mask(mask, tokens, policy)
    except MaskRejected:
        return False
    return True


def must_keep(protected: tuple[Span, ...], prompt_tokens: int, window: int) -> NDArray[np.bool_]:
    """bool[prompt_tokens]: protected spans and window together."""
    flags = covered(protected, prompt_tokens)
    flags[max(0, prompt_tokens - window) :] = True
    return flags
