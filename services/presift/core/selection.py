"""Selection: which prompt tokens SpecPC keeps, given their importance (paper section 4.2; design steps 5 to 8).

Ties go to the lower index: two machines with the same importance keep the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import BudgetExceeded
from presift.core.importance import check_importance
from presift.core.masks import TokenMask
from presift.core.policies import SpecPc
from presift.core.pooling import pool
from presift.core.spans import Span, check_within, covered

# Peaks are widened this many at a time: most selections are full after a few blocks, long before capacity x neighbours.
_PEAKS_PER_BLOCK = 256


def select(importance: NDArray[np.float32], policy: SpecPc, protected: Sequence[Span] = ()) -> TokenMask:
    """The mask of `importance`, float32[n]: exactly min(capacity, n) tokens, the window and `protected` among them.

    Raises InvalidRequest if a span ends beyond the prompt, BudgetExceeded if window and `protected` alone exceed the
    capacity, InternalError if the importance is not float32[n], finite and n > 0.
    """
    check_importance(importance)
    check_within(protected, importance.size)
    if importance.size <= policy.capacity:
        return TokenMask(np.ones(importance.size, dtype=np.bool_))
    kept = _always_kept(importance.size, policy, protected)
    peaks = descending(pool(importance, policy.pool, policy.kernel))[: policy.capacity]
    _fill(kept, peaks, _neighborhood(policy.neighbors), policy.capacity)
    return TokenMask(kept)


def descending(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64[..., n]: indices of the last axis, highest value first, equal ones by index."""
    return np.argsort(-values, axis=-1, kind="stable")


def _always_kept(tokens: int, policy: SpecPc, protected: Sequence[Span]) -> NDArray[np.bool_]:
    kept = covered((*protected, Span(tokens - policy.window, tokens)), tokens)
    if (needed := int(np.count_nonzero(kept))) > policy.capacity:
        raise BudgetExceeded("protected_spans", needed, f"<= capacity ({policy.capacity}) tokens, the window included")
    return kept


def _neighborhood(neighbors: int) -> NDArray[np.int64]:
    """Offsets nearest first, -d before +d; the peak alone for 0. An even count reaches one further to the future."""
    before = max(neighbors - 1, 0) // 2
    offsets = range(-before, max(neighbors, 1) - before)
    return np.array(sorted(offsets, key=lambda offset: (abs(offset), offset)), dtype=np.int64)


def _fill(kept: NDArray[np.bool_], peaks: NDArray[np.int64], offsets: NDArray[np.int64], capacity: int) -> None:
    """Set flags in `kept`, bool[n], peak by peak with its neighbourhood, until `capacity` are set."""
    room = capacity - int(np.count_nonzero(kept))
    for start in range(0, len(peaks), _PEAKS_PER_BLOCK):
        if room == 0:
            return
        block = peaks[start : start + _PEAKS_PER_BLOCK, None] + offsets
        candidates = np.clip(block, 0, kept.size - 1).ravel()
        chosen = _first_occurrences(candidates[~kept[candidates]])[:room]
        kept[chosen] = True
        room -= chosen.size


def _first_occurrences(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct indices, in the order in which they first appear."""
    _, first = np.unique(indices, return_index=True)
    return indices[np.sort(first)]
