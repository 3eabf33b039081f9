"""Selection: which prompt tokens SpecPC keeps, given their importance (paper section 4.2; design steps 5 to 8).

Ties go to the lower index: two machines with the same importance keep the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import BudgetExceeded, InternalError
from presift.core.importance import check_importance, coverage
from presift.core.masks import TokenMask
from presift.core.policies import SpecPc
from presift.core.pooling import pool
from presift.core.spans import Span, check_within, covered, moved

# Peaks are expanded in blocks of this size: most selections are full after a few blocks.
_PEAKS_PER_BLOCK = 256


def select(
    importance: NDArray[np.float32],
    policy: SpecPc,
    protected: Sequence[Span] = (),
    mass: NDArray[np.float32] | None = None,
) -> TokenMask:
    """The mask of `importance`, float32[n]: exactly min(capacity, n) tokens, the window and `protected` among them.

    With `policy.adaptive` it keeps the fewest, at most the capacity, that reach its coverage of `mass`, float32[n], the
    quantity that `coverage` is a share of. A prompt that fits the capacity is always kept whole.

    Raises InvalidRequest if a span ends beyond the prompt, BudgetExceeded if window and `protected` alone exceed the
    capacity, InternalError if the importance is not float32[n], finite and n > 0.
    """
    check_importance(importance)
    check_within(protected, importance.size)
    if importance.size <= policy.capacity:
        return TokenMask(np.ones(importance.size, dtype=np.bool_))
    kept = _always_kept(importance.size, policy, protected)
    peaks = descending(pool(importance, policy.pool, policy.kernel))[: policy.capacity]
    ranked = _ranked(kept, peaks, _neighborhood(policy.neighbors), policy.capacity)
    if policy.adaptive is not None:
        # A smaller capacity only cuts this order, so smaller masks are subsets of larger ones: one pass finds the size.
        needed = _tokens_needed(kept, ranked, mass, policy.adaptive.coverage)
        ranked = ranked[: policy.adaptive.size(needed, policy.capacity) - int(np.count_nonzero(kept))]
    kept[ranked] = True
    return TokenMask(kept)


@dataclass(frozen=True, slots=True)
class KvCount:
    """How many KV pairs to keep, without the final token, and the share (0..1) of the mass that they and it cover."""

    capacity: int
    coverage: float


def count_kv(
    importance: NDArray[np.float32],
    mass: NDArray[np.float32],
    mask: TokenMask,
    counting: SpecPc,
    protected: Sequence[Span] = (),
) -> KvCount | None:
    """How many KV pairs of the tokens in `mask` reach `counting`'s coverage of their mass; None if all fit.

    The final token is not counted, because it is fed again. `importance` and `mass` are float32[n] of the whole prompt.
    Raises as `select`.
    """
    if mask.kept_tokens <= counting.capacity:
        return None
    kept = mask.kept
    chosen = select(importance[kept], counting, moved(protected, kept), mass[kept])
    return KvCount(chosen.kept_tokens - 1, coverage(mass[kept], chosen.kept))


def descending(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64[..., n]: indices along the last axis, highest value first; ties by index."""
    return np.argsort(-values, axis=-1, kind="stable")


def _always_kept(tokens: int, policy: SpecPc, protected: Sequence[Span]) -> NDArray[np.bool_]:
    kept = covered((*protected, Span(tokens - policy.window, tokens)), tokens)
    if (needed := int(np.count_nonzero(kept))) > policy.capacity:
        raise BudgetExceeded("protected_spans", needed, f"<= capacity ({policy.capacity}) tokens, the window included")
    return kept


def _neighborhood(neighbors: int) -> NDArray[np.int64]:
    """Offsets, nearest first, -d before +d; only the peak for 0. An even count reaches one further after the peak."""
    before = max(neighbors - 1, 0) // 2
    offsets = range(-before, max(neighbors, 1) - before)
    return np.array(sorted(offsets, key=lambda offset: (abs(offset), offset)), dtype=np.int64)


def _ranked(
    kept: NDArray[np.bool_], peaks: NDArray[np.int64], offsets: NDArray[np.int64], capacity: int
) -> NDArray[np.int64]:
    """int64[capacity - kept tokens]: the tokens to add to `kept`, bool[n], in order: each peak with its neighbours."""
    taken, room = kept.copy(), capacity - int(np.count_nonzero(kept))
    blocks = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(peaks), _PEAKS_PER_BLOCK):
        if room == 0:
            break
        block = peaks[start : start + _PEAKS_PER_BLOCK, None] + offsets
        candidates = np.clip(block, 0, kept.size - 1).ravel()
        blocks.append(_first_occurrences(candidates[~taken[candidates]])[:room])
        taken[blocks[-1]] = True
        room -= blocks[-1].size
    return np.concatenate(blocks)


def _tokens_needed(
    kept: NDArray[np.bool_], ranked: NDArray[np.int64], mass: NDArray[np.float32] | None, wanted: float
) -> int:
    """How many tokens, `kept` first, then `ranked` in order, cover `wanted`; one more than all if they do not."""
    if mass is None or mass.shape != kept.shape:
        state = "unset" if mass is None else str(mass.shape)
        raise InternalError(f"mass is {state}, importance {kept.shape}", field="mass", value=state, limit="as long")
    check_importance(mass)
    total = float(mass.sum(dtype=np.float64))
    along = np.concatenate(([mass[kept].sum(dtype=np.float64)], mass[ranked].astype(np.float64)))
    # float32, as coverages are reported: the order of summation changes the last bits of a float64.
    shares = (np.cumsum(along) / total if total > 0.0 else np.ones(along.size)).astype(np.float32)
    return int(np.count_nonzero(kept)) + int(np.searchsorted(shares, np.float32(wanted)))


def _first_occurrences(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct indices, in the order of their first occurrence."""
    _, first = np.unique(indices, return_index=True)
    return indices[np.sort(first)]
