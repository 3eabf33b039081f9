"""The decision: what was applied to one request and why. The first message of every stream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecPc
from presift.core.spans import Span
from presift.orchestrator.routing import Reason


class CacheUse(StrEnum):
    """What the cache of compressed prompts did for one request."""

    NOT_USED = "not_used"
    HIT = "hit"
    MISS = "miss"
    SHARED = "shared"  # another request was scoring the same prompt


@dataclass(frozen=True, slots=True)
class Decision:
    """Counts in tokens, times in milliseconds, `coverage` 0..1 or None where nothing was dropped."""

    route: Route
    reason: Reason
    detail: str
    prompt_tokens: int
    kept_tokens: int
    protected_tokens: int
    target: ModelInfo
    tokenize_ms: float
    policy: SpecPc | None = None
    draft: ModelInfo | None = None
    coverage: float | None = None
    cache: CacheUse = CacheUse.NOT_USED
    cache_ms: float = 0.0
    draft_ms: float = 0.0

    @property
    def kv_tokens(self) -> int:
        """On routes full and spec_pc the target holds the KV of what it reads."""
        return self.kept_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A decision and what follows from it: `kept_ids` uint32[kept_tokens], `kept` bool[prompt_tokens]."""

    decision: Decision
    kept_ids: NDArray[np.uint32]
    kept: NDArray[np.bool_]
    protected: tuple[Span, ...]
    importance: NDArray[np.float32] | None = None
