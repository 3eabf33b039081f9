"""Compresses one prompt: the model scores it, then tokens are selected. Runs on the worker thread, without gRPC."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.importance import coverage
from presift.core.masks import KvMask, TokenMask
from presift.core.selection import KvCount, count_kv, select
from presift.draft.demand import Mask
from presift.draft.request import Request
from presift.draft.scorer import Cancel, Scorer, ScoreResult
from presift.telemetry.tracing import span


@dataclass(frozen=True, slots=True, eq=False)
class CompressionResult:
    """The masks, the scores behind them, and `coverage` (0..1; None if no mask was selected by scores).

    `kv_mask`: set only if the target applies the draft's mask to the KV. `kv_count`: set only if KV was counted.
    """

    mask: TokenMask
    kv_mask: KvMask | None
    scored: ScoreResult
    coverage: float | None
    select_ms: float
    kv_count: KvCount | None = None

    @property
    def kv_capacity(self) -> int | None:
        """How many KV pairs to keep; None if they were not counted."""
        return None if self.kv_count is None else self.kv_count.capacity

    @property
    def kv_coverage(self) -> float | None:
        """The coverage, 0..1, of `kv_capacity`; None if KV was not counted."""
        return None if self.kv_count is None else self.kv_count.coverage


def compress(scorer: Scorer, request: Request, cancel: Cancel) -> CompressionResult:
    """Score the prompt of `request` and select from it. Raises what `Scorer.score` and `select` raise."""
    scored = scorer.score(request.task, cancel)
    started = time.perf_counter()
    with span("select") as current:
        mask, share = _select(request, scored)
        current.set_attribute("presift.kept_tokens", mask.kept_tokens)
        kv_mask = KvMask.uniform(mask) if request.demand.mask is Mask.KV else None
        kv_count = _count_kv(request, scored, mask)
    return CompressionResult(mask, kv_mask, scored, share, (time.perf_counter() - started) * 1e3, kv_count)


def _select(request: Request, scored: ScoreResult) -> tuple[TokenMask, float | None]:
    is_drawn = request.demand.mask is not Mask.NONE
    if not is_drawn or scored.importance is None or scored.coverage_importance is None:
        everything: NDArray[np.bool_] = np.ones(request.token_ids.size, dtype=np.bool_)
        return TokenMask(everything), None
    mask = select(scored.importance, request.demand.scoring, request.protected, scored.coverage_importance)
    return mask, coverage(scored.coverage_importance, mask.kept)


def _count_kv(request: Request, scored: ScoreResult, mask: TokenMask) -> KvCount | None:
    counting, importance, mass = request.demand.counting, scored.importance, scored.coverage_importance
    if counting is None or importance is None or mass is None:
        return None
    return count_kv(importance, mass, mask, counting, request.protected)
