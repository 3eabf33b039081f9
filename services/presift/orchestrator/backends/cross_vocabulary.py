"""Cross vocabulary: adapts a draft with another vocabulary than the target's to the port of an ordinary draft.

The draft returns importance and lookahead only. Importance is mapped to the target's tokens through the text. The mask
is then selected here, with the same code as in the draft, so that capacity, window and protected spans refer to the
target's tokens.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InternalError
from presift.core.importance import coverage
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt
from presift.core.policies import Policy, Pool, SpecKv, SpecKvPc, SpecPc
from presift.core.remapping import remapped
from presift.core.selection import count_kv, select
from presift.core.spans import Span
from presift.orchestrator.domain.ports import DraftRequest, DraftScorer, MaskRejected, Score
from presift.orchestrator.prompt.tokenizing_limit import TokenizingLimit
from presift.orchestrator.prompt.vocabulary_bridge import BridgedPrompt, VocabularyBridge
from presift.rpc.deadline import Deadline

# What a token counts in the limit of tokenizing: two encodings of some four bytes of text.
_BYTES_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class _Stages:
    """The parts of a policy that use the draft's answer, None for those that do not: `mask` selects tokens, `lookahead`
    is read by the target, `count` counts KV pairs. `scoring` are the rows to score."""

    mask: SpecPc | None
    lookahead: SpecKv | None
    count: SpecPc | None
    scoring: SpecPc | None


@dataclass(frozen=True, slots=True)
class _TargetScores:
    """The draft's importance and attention mass: float32[target tokens]."""

    importance: NDArray[np.float32]
    mass: NDArray[np.float32]


class CrossVocabularyDraft:
    """A `draft` behind a vocabulary bridge: it takes and returns the target's tokens."""

    def __init__(self, draft: DraftScorer, bridge: VocabularyBridge, limit: TokenizingLimit) -> None:
        self._draft = draft
        self._bridge = bridge
        self._limit = limit

    async def score(self, request: DraftRequest, deadline: Deadline) -> Score:
        """As the port; also raises InvalidRequest if the text of the ids does not tokenize to the same ids."""
        stages = _stages(request.policy, include_importance=request.include_importance)
        read = partial(self._bridge.translate, request.token_ids)
        prompt = await self._limit.run(read, _BYTES_PER_TOKEN * int(request.token_ids.size))
        # No protected spans: the mask is selected here.
        asked = DraftRequest(
            prompt.ids, _draft_policy(stages, prompt), (), request.salt, include_importance=stages.scoring is not None
        )
        answer = await self._draft.score(asked, deadline)
        score = await asyncio.to_thread(self._translate_answer, answer, stages, prompt, request.protected)
        return score if request.include_importance else replace(score, importance=None, mass=None)

    def _translate_answer(
        self, answer: Score, stages: _Stages, prompt: BridgedPrompt, protected: tuple[Span, ...]
    ) -> Score:
        scores = _target_scores(answer, prompt)
        mask, mask_coverage = _select_mask(scores, stages.mask, protected, len(prompt.target_offsets))
        lookahead: tuple[int, ...] = ()
        if stages.lookahead is not None:
            count = stages.lookahead.lookahead_tokens
            lookahead = self._bridge.translate_lookahead(prompt, answer.prompt.lookahead_token_ids, count)
        drafted = answer.prompt
        compressed = CompressedPrompt(mask, lookahead, mask_coverage, drafted.draft, made_in=drafted.made_in)
        cached_tokens = answer.cached_tokens * len(prompt.target_offsets) // prompt.ids.size
        if scores is None:
            return Score(compressed, None, None, answer.queue_ms, cached_tokens)
        if stages.count is not None:
            kv = count_kv(scores.importance, scores.mass, mask, stages.count, protected)
            if kv is not None:
                compressed = replace(compressed, kv_capacity=kv.capacity, kv_coverage=kv.coverage)
        return Score(compressed, scores.importance, scores.mass, answer.queue_ms, cached_tokens)


def _stages(policy: Policy, *, include_importance: bool) -> _Stages:
    mask, count = policy.mask_policy, policy.counting_policy
    scoring = mask or count or (policy.scoring_policy if include_importance else None)
    return _Stages(mask, policy.lookahead_policy, count, scoring)


def _draft_policy(stages: _Stages, prompt: BridgedPrompt) -> Policy:
    """The policy to send: its window covers the same text; pooling and capacity are the cheapest."""
    if stages.scoring is None:
        if stages.lookahead is None:
            raise InternalError("the policy needs nothing of the draft")
        return stages.lookahead
    window = prompt.draft_window(stages.scoring.window)
    scoring = replace(
        stages.scoring, capacity=window, window=window, pool=Pool.NONE, kernel=1, neighbors=0, adaptive=None
    )
    if stages.lookahead is None:
        return scoring
    return SpecKvPc(scoring, replace(stages.lookahead, mask=None, adaptive=None))


def _target_scores(answer: Score, prompt: BridgedPrompt) -> _TargetScores | None:
    """None without importance, which also replaces a missing mass. Raises MaskRejected."""
    if answer.importance is None:
        return None
    importance = _to_target(answer.importance, prompt)
    return _TargetScores(importance, importance if answer.mass is None else _to_target(answer.mass, prompt))


def _to_target(values: NDArray[np.float32], prompt: BridgedPrompt) -> NDArray[np.float32]:
    """float32[draft tokens] as float32[target tokens]. Raises MaskRejected."""
    if values.size != prompt.ids.size:
        raise MaskRejected(f"importance of {values.size} tokens for a prompt of {prompt.ids.size}")
    try:
        return remapped(values, prompt.draft_offsets, prompt.target_offsets)
    except InternalError as error:
        raise MaskRejected(f"the draft's answer: {error.message}") from error


def _select_mask(
    scores: _TargetScores | None, policy: SpecPc | None, protected: tuple[Span, ...], prompt_tokens: int
) -> tuple[TokenMask, float | None]:
    """The mask and its coverage; None if every token is kept. Raises MaskRejected without scores, BudgetExceeded if
    protected spans and window exceed the capacity."""
    if policy is None or prompt_tokens <= policy.capacity:
        return TokenMask(np.ones(prompt_tokens, dtype=np.bool_)), None
    if scores is None:
        raise MaskRejected("the draft scored nothing: the prompt is hardly more than its window")
    mask = select(scores.importance, policy, protected, scores.mass)
    return mask, coverage(scores.mass, mask.kept)
