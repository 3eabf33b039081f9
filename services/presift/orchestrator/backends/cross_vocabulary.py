"""Cross vocabulary: adapts a draft with another vocabulary than the target's to the port of an ordinary draft.

The draft returns importance and lookahead only. Importance is mapped to the target's tokens through the text. The mask
is then selected here, with the same code as in the draft, so that capacity, window and protected spans refer to the
target's tokens.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InternalError
from presift.core.importance import coverage
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.policies import Policy, Pool, SpecKv, SpecKvPc, SpecPc
from presift.core.remapping import remapped
from presift.core.selection import count_kv, select
from presift.core.spans import Span
from presift.orchestrator.domain.ports import Draft, MaskRejected, Score
from presift.orchestrator.prompt.vocabulary_bridge import BridgedPrompt, VocabularyBridge
from presift.rpc.deadline import Deadline
from presift.rpc.pool.replica import ReplicaStatus


@dataclass(frozen=True, slots=True)
class Asked:
    """What one reply of the draft is for: selecting the mask (None: all tokens are kept), lookahead (None: not used),
    counting KV pairs (None: not counted), and the rows to score (None: none)."""

    mask: SpecPc | None
    lookahead: SpecKv | None
    counting: SpecPc | None
    scoring: SpecPc | None

    @classmethod
    def of(cls, policy: Policy, *, include_importance: bool) -> Asked:
        mask, counting = policy.mask_policy, policy.counting_policy
        scoring = mask or counting or (policy.scoring_policy if include_importance else None)
        return cls(mask, policy.lookahead_policy, counting, scoring)

    def of_draft(self, reading: BridgedPrompt) -> Policy:
        """The policy to send: its window covers the same text; pooling and capacity are the cheapest."""
        if self.scoring is None:
            if self.lookahead is None:
                raise InternalError("a policy that asks nothing of the draft")
            return self.lookahead
        window = reading.draft_window(self.scoring.window)
        bare = replace(
            self.scoring, capacity=window, window=window, pool=Pool.NONE, kernel=1, neighbors=0, adaptive=None
        )
        return bare if self.lookahead is None else SpecKvPc(bare, replace(self.lookahead, mask=None, adaptive=None))


class CrossVocabularyDraft:
    """A `draft` behind a vocabulary bridge: it takes and returns the target's tokens."""

    def __init__(self, draft: Draft, interpreter: VocabularyBridge) -> None:
        self._draft = draft
        self._interpreter = interpreter

    @property
    def width(self) -> int:
        return self._draft.width

    def statuses(self) -> list[ReplicaStatus]:
        return self._draft.statuses()

    async def info(self) -> ModelInfo:
        return await self._draft.info()

    async def score(
        self,
        token_ids: NDArray[np.uint32],
        policy: Policy,
        protected: tuple[Span, ...],
        *,
        include_importance: bool,
        deadline: Deadline,
    ) -> Score:
        """As the port; also raises InvalidRequest if the text of the ids does not tokenize to the same ids."""
        asked = Asked.of(policy, include_importance=include_importance)
        reading = await asyncio.to_thread(self._interpreter.translate, token_ids)
        reply = await self._draft.score(
            reading.ids,
            asked.of_draft(reading),
            (),  # the mask is selected here
            include_importance=asked.scoring is not None,
            deadline=deadline,
        )
        score = await asyncio.to_thread(self._carried, reply, asked, reading, protected)
        return score if include_importance else replace(score, importance=None, mass=None)

    def _carried(self, reply: Score, asked: Asked, reading: BridgedPrompt, protected: tuple[Span, ...]) -> Score:
        importance, mass = carried(reply, reading)
        mask, share = drawn((importance, mass), asked.mask, protected, len(reading.target_offsets))
        found = None
        if asked.counting is not None and importance is not None and mass is not None:
            found = count_kv(importance, mass, mask, asked.counting, protected)
        lookahead: tuple[int, ...] = ()
        if asked.lookahead is not None:
            count = asked.lookahead.lookahead_tokens
            lookahead = self._interpreter.translate_lookahead(reading, reply.prompt.lookahead_token_ids, count)
        prompt = CompressedPrompt(mask, lookahead, share, reply.prompt.draft, made_in=reply.prompt.made_in)
        if found is not None:
            prompt = replace(prompt, kv_capacity=found.capacity, kv_coverage=found.coverage)
        return Score(prompt, importance, mass, reply.queue_ms)


Values = NDArray[np.float32]


def carried(reply: Score, reading: BridgedPrompt) -> tuple[Values | None, Values | None]:
    """The draft's importance and mass as float32[target tokens]. Importance replaces a missing mass; both are None
    without importance. Raises MaskRejected."""
    if reply.importance is None:
        return None, None
    importance = _carried(reply.importance, reading)
    return importance, importance if reply.mass is None else _carried(reply.mass, reading)


def _carried(values: Values, reading: BridgedPrompt) -> Values:
    if values.size != reading.ids.size:
        raise MaskRejected(f"importance of {values.size} tokens for a prompt of {reading.ids.size}")
    try:
        return remapped(values, reading.draft_offsets, reading.target_offsets)
    except InternalError as error:
        raise MaskRejected(f"the draft's answer: {error.message}") from error


def drawn(
    values: tuple[Values | None, Values | None],
    policy: SpecPc | None,
    protected: tuple[Span, ...],
    prompt_tokens: int,
) -> tuple[TokenMask, float | None]:
    """The mask by importance and mass, and its coverage; None if every token is kept. Raises MaskRejected without
    importance, BudgetExceeded if protected spans and window exceed the capacity."""
    if policy is None or prompt_tokens <= policy.capacity:
        return TokenMask(np.ones(prompt_tokens, dtype=np.bool_)), None
    importance, mass = values
    if importance is None or mass is None:
        raise MaskRejected("the draft scored nothing: the prompt is hardly more than its window")
    mask = select(importance, policy, protected, mass)
    return mask, coverage(mass, mask.kept)
