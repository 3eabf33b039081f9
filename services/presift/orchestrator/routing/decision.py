"""The decision: what was applied to one request and why. The first message of every stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo, Route
from presift.core.policies import Policy
from presift.core.spans import Span
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef
from presift.orchestrator.routing.candidates import Candidate
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import Forecast


class CacheOutcome(StrEnum):
    """What the cache of compressed prompts did for one request."""

    NOT_USED = "not_used"
    HIT = "hit"
    MISS = "miss"
    SHARED = "shared"  # another request was scoring the same prompt


@dataclass(frozen=True, slots=True)
class Decision:
    """Counts in tokens, times in milliseconds, `coverage` 0..1 or None where nothing was dropped by the draft.

    `kept_tokens` is what the target reads, `kv_tokens` what it is to hold while it decodes. `keep_full_prefix` is None
    where no KV is dropped. `kv_coverage` is the draft's estimate for the KV that the target chooses, None where it was
    not asked or did not say. `forecast` is what it was predicted to cost. `draft_queue_ms` is a part of `draft_ms`.
    """

    route: Route
    reason: Reason
    detail: str
    prompt_tokens: int
    kept_tokens: int
    kv_tokens: int
    protected_tokens: int
    target: ModelInfo
    tokenize_ms: float
    policy: Policy | None = None
    draft: ModelInfo | None = None
    coverage: float | None = None
    cache: CacheOutcome = CacheOutcome.NOT_USED
    cache_ms: float = 0.0
    draft_ms: float = 0.0
    draft_queue_ms: float = 0.0
    prefill_ms: float = 0.0
    keep_full_prefix: bool | None = None
    continued: bool = False
    forecast: Forecast | None = None
    kv_coverage: float | None = None

    @property
    def cross_vocabulary(self) -> bool:
        """Whether importance and lookahead were carried over from a draft that reads other token ids."""
        return self.draft is not None and not self.draft.shares_vocabulary(self.target)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A decision and what follows from it.

    `read_ids`: uint32[kept_tokens], what the target reads; `kept`: bool[prompt_tokens], what is left of the prompt as
    far as the orchestrator knows; `kv_plan` where KV is dropped; `prompt_ids`: uint32[prompt_tokens]; `avoided`: what
    would have been chosen, had the quality guard not switched its route off; `is_tighter`: less is kept than everyone
    gets who asks for nothing; `salt`: whose it is; `at`: the target's replica; `full_ttft_ms`: what was predicted for
    route full, None where nobody asked. `importance` and
    `routes`, what AUTO chose among, are only there where a plan is to be explained.
    """

    decision: Decision
    read_ids: NDArray[np.uint32]
    kept: NDArray[np.bool_]
    protected: tuple[Span, ...]
    kv_plan: KvPlan | None = None
    importance: NDArray[np.float32] | None = None
    prompt_ids: NDArray[np.uint32] | None = None
    avoided: RouteChoice | None = None
    is_tighter: bool = False
    routes: tuple[Candidate, ...] = ()
    salt: str = field(default="", repr=False)
    at: ReplicaRef = ANY_REPLICA
    full_ttft_ms: float | None = None
