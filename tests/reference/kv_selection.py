"""KV selection: which KV pairs SpecKV keeps, by the target's own queries (paper section 4.1; steps 2 to 5).

The numpy reference of the target plugin's kernel, for one layer. The last `W + L + 1` rows of prompt plus lookahead
score (`scoring_rows`); the keys before them, the prefix, compete for `C - W` slots. The `W` prompt tokens after the
prefix are always kept, and the final prompt token is fed again: prompt = prefix + window + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import BudgetExceeded, InvalidRequest
from presift.core.importance import check_importance
from presift.core.policies import Reduction, SpecKv
from presift.core.pooling import pool
from presift.core.selection import descending
from presift.core.spans import Span, check_within


def scoring_rows(window: int, lookahead_tokens: int) -> int:
    """The authors' effective window: window, final prompt token and lookahead."""
    return window + 1 + lookahead_tokens


def kv_importance(queries: NDArray[np.float32], keys: NDArray[np.float32], policy: SpecKv) -> NDArray[np.float32]:
    """float32[kv_heads, n - rows]: the attention of the queries to each key of the prefix, pooled along the sequence.

    `queries`: float32[rows, heads, d], of the last `rows` of the n positions; `keys`: float32[n, kv_heads, d]; both
    rotated. Consecutive query heads share a KV head. Raises InvalidRequest if no key lies before the rows.
    """
    rows, heads, size = queries.shape
    tokens, kv_heads, _ = keys.shape
    if rows >= tokens:
        raise InvalidRequest("spec_kv.window", rows, f"< {tokens} rows, the positions that have keys")
    grouped = queries.reshape(rows, kv_heads, heads // kv_heads, size)
    per_head = [_attention(grouped[:, head], keys[:, head]) for head in range(kv_heads)]
    reduced = np.stack([_reduced(attention[..., : tokens - rows], policy.reduction) for attention in per_head])
    return pool(reduced, policy.pool, policy.kernel)


def select_kv(
    importance: NDArray[np.float32], capacity: int, window: int, protected: Sequence[Span] = ()
) -> NDArray[np.bool_]:
    """bool[kv_heads, prefix + window]: the kept pairs of each head, given `importance`, float32[kv_heads, prefix].

    Exactly min(capacity, prefix + window) per head, the window and `protected` among them. `protected` are spans of the
    prompt. Raises InvalidRequest if capacity <= window or a span ends beyond the prompt, BudgetExceeded if window and
    `protected` alone exceed the capacity, InternalError if the importance is invalid.
    """
    check_importance(importance.reshape(-1))
    if capacity <= window:
        raise InvalidRequest("spec_kv.capacity", capacity, f"> window ({window})")
    kv_heads, prefix = importance.shape
    fixed = _protected_prefix(prefix, window, protected)
    if (needed := int(np.count_nonzero(fixed)) + window) > capacity:
        raise BudgetExceeded("protected_spans", needed, f"<= capacity ({capacity}) tokens, the window included")
    ranked = descending(np.where(fixed, np.float32(np.inf), importance))
    kept = np.ones((kv_heads, prefix + window), dtype=np.bool_)
    np.put_along_axis(kept, ranked[:, capacity - window :], False, axis=1)
    return kept


def _attention(queries: NDArray[np.float32], keys: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[rows, group, n]: causal softmax of [rows, group, d] on [n, d]; row r sits at position n - rows + r."""
    rows, tokens = queries.shape[0], keys.shape[0]
    scores = (queries @ keys.T) / np.float32(np.sqrt(keys.shape[1]))
    future = np.arange(tokens) > np.arange(tokens - rows, tokens)[:, None]
    scores = np.where(future[:, None, :], np.float32(-np.inf), scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def _reduced(attention: NDArray[np.float32], reduction: Reduction) -> NDArray[np.float32]:
    """float32[rows, group, prefix] -> float32[prefix]. The authors' mean is this sum by a constant: the same order."""
    over = attention.max(axis=(0, 1)) if reduction is Reduction.MAX else attention.sum(axis=(0, 1), dtype=np.float32)
    return np.asarray(over, dtype=np.float32)


def _protected_prefix(prefix: int, window: int, protected: Sequence[Span]) -> NDArray[np.bool_]:
    """bool[prefix]: protected tokens. The window behind the prefix is kept anyway."""
    check_within(protected, prefix + window + 1)
    fixed = np.zeros(prefix, dtype=np.bool_)
    for span in protected:
        fixed[span.start : span.end] = True
    return fixed
