"""The decision: what was applied to one request and why. The first message of every stream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo, Route
from presift.core.policies import KvSelection, Policy
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef
from presift.orchestrator.domain.request import KvLookahead, TokenizedPrompt
from presift.orchestrator.routing.candidates import Candidate
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import Forecast


class CacheOutcome(StrEnum):
    """What the cache of compressed prompts did for one request."""

    NOT_USED = "not_used"
    HIT = "hit"
    MISS = "miss"
    SHARED = "shared"  # another request was scoring the same prompt
    UNAVAILABLE = "unavailable"  # the cache did not answer


@dataclass(frozen=True, slots=True)
class Decision:
    """Counts in tokens, times in milliseconds, `coverage` 0..1 or None if the draft dropped nothing.

    The target reads `kept_tokens` and holds `kv_tokens` while decoding. `keep_full_prefix` is None where no KV is
    dropped. `kv_coverage` is the draft's estimate for the KV that the target selects, None if there is none. `forecast`
    is the predicted cost. `draft_queue_ms` is a part of `draft_ms`. The draft had kept
    `draft_cached_tokens` of an earlier prompt, and read the others.
    """

    route: Route
    reason: Reason
    detail: str
    prompt_tokens: int
    kept_tokens: int
    kv_tokens: int
    protected_tokens: int
    target: ModelInfo
    tokenize_ms: float = 0.0
    policy: Policy | None = None
    draft: ModelInfo | None = None
    coverage: float | None = None
    cache: CacheOutcome = CacheOutcome.NOT_USED
    cache_ms: float = 0.0
    draft_ms: float = 0.0
    draft_queue_ms: float = 0.0
    draft_cached_tokens: int = 0
    prefill_ms: float = 0.0
    keep_full_prefix: bool | None = None
    continued: bool = False
    forecast: Forecast | None = None
    kv_coverage: float | None = None

    @property
    def lookahead(self) -> KvLookahead | None:
        """Who made the lookahead by which the target selects KV, DRAFT or TARGET; None if there is none."""
        kv = None if self.policy is None else self.policy.kv_stage
        if kv is None or kv.selection is KvSelection.DRAFT_MASK:
            return None
        if kv.first_full_tokens:
            return KvLookahead.TARGET
        return KvLookahead.DRAFT if kv.lookahead_tokens else None

    @property
    def cross_vocabulary(self) -> bool:
        """Whether the draft reads other token ids, so that importance and lookahead were mapped through the text."""
        return self.draft is not None and not self.draft.shares_vocabulary(self.target)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A decision and everything needed to carry it out; complete when made.

    `read_ids`: uint32[kept_tokens], the tokens that the target reads. `kept_mask`: bool[prompt_tokens], the tokens that
    remain as far as the orchestrator knows. `kv_plan` is None where no KV is dropped. `importance` (float32
    [prompt_tokens]) and `routes`, the candidates of AUTO, are there only for explanations. `switched_off_choice` is the
    choice if the quality guard had not switched its route off. `is_tighter`: less is kept than for callers without a
    budget. `full_ttft_ms` is the prediction for route full, None if it was not made. `replica` is that of the target.
    """

    decision: Decision
    read_ids: NDArray[np.uint32]
    kept_mask: NDArray[np.bool_]
    tokens: TokenizedPrompt
    kv_plan: KvPlan | None = None
    importance: NDArray[np.float32] | None = None
    switched_off_choice: RouteChoice | None = None
    is_tighter: bool = False
    routes: tuple[Candidate, ...] = ()
    replica: ReplicaRef = ANY_REPLICA
    full_ttft_ms: float | None = None
