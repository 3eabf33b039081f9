import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from presift.core.errors import BudgetExceeded, InternalError, InvalidRequest
from presift.core.policies import Pool, Reduction, SpecKv
from presift.core.pooling import pool
from presift.core.spans import Span

from .kv_selection import kv_importance, scoring_rows, select_kv

SCORES = st.sampled_from([0.0, 0.25, 1.0]) | st.floats(0, 1, width=32)


@st.composite
def tasks(draw):
    heads, prefix, window = draw(st.integers(1, 3)), draw(st.integers(1, 60)), draw(st.integers(1, 10))
    importance = draw(hnp.arrays(np.float32, (heads, prefix), elements=SCORES))
    starts = draw(st.lists(st.integers(0, prefix + window), max_size=3))
    spans = tuple(Span(start, min(start + draw(st.integers(1, 6)), prefix + window + 1)) for start in starts)
    return importance, draw(st.integers(window + 1, prefix + window + 5)), window, spans


@given(tasks())
def test_each_head_keeps_its_best_keys_the_window_and_the_protected_spans(task):
    importance, capacity, window, spans = task
    prefix = importance.shape[1]
    protected = {i for span in spans for i in range(span.start, span.end) if i < prefix}
    assume(len(protected) + window <= capacity)
    kept = select_kv(importance, capacity, window, spans)
    assert kept.shape == (len(importance), prefix + window)
    for head, scores in enumerate(importance):
        ranked = sorted(range(prefix), key=lambda i: (i not in protected, -scores[i], i))
        expected = {*ranked[: capacity - window], *range(prefix, prefix + window)}
        assert set(np.flatnonzero(kept[head]).tolist()) == expected
    assert (kept.sum(axis=1) == min(capacity, prefix + window)).all()


@given(tasks())
def test_the_same_arguments_give_the_same_mask_and_stay_as_they_were(task):
    importance, capacity, window, _ = task
    before = importance.copy()
    np.testing.assert_array_equal(select_kv(importance, capacity, window), select_kv(before, capacity, window))
    np.testing.assert_array_equal(importance, before)


def test_protected_tokens_beyond_the_capacity_are_refused():
    with pytest.raises(BudgetExceeded) as refusal:
        select_kv(np.ones((1, 20), dtype=np.float32), 8, 4, [Span(3, 8)])
    assert (refusal.value.field, refusal.value.value) == ("protected_spans", 9)
    assert "capacity (8)" in refusal.value.details["limit"]


def test_protected_tokens_of_the_window_and_the_final_token_cost_nothing():
    kept = select_kv(np.ones((1, 20), dtype=np.float32), 5, 4, [Span(19, 25)])
    assert np.flatnonzero(kept[0]).tolist() == [19, 20, 21, 22, 23]


def test_a_span_beyond_the_prompt_is_refused():
    with pytest.raises(InvalidRequest, match="protected_spans"):
        select_kv(np.ones((1, 20), dtype=np.float32), 8, 4, [Span(24, 26)])


@pytest.mark.parametrize("capacity", [3, 4])
def test_a_capacity_within_the_window_is_refused(capacity):
    with pytest.raises(InvalidRequest) as refusal:
        select_kv(np.ones((1, 20), dtype=np.float32), capacity, 4)
    assert refusal.value.details == {"field": "spec_kv.capacity", "value": str(capacity), "limit": "> window (4)"}


def test_importance_that_cannot_be_sorted_is_refused():
    with pytest.raises(InternalError, match="importance"):
        select_kv(np.full((2, 9), np.nan, dtype=np.float32), 8, 4)


def attention_by_definition(queries, keys, kv_head):
    """Plain Python: [rows][group heads][prefix], causal, in float64."""
    rows, heads, d = queries.shape
    n, kv_heads, _ = keys.shape
    group = heads // kv_heads
    weights = np.zeros((rows, group, n - rows))
    for row in range(rows):
        for member in range(group):
            query = queries[row, kv_head * group + member].astype(np.float64)
            seen = n - rows + row + 1
            scores = [math.exp(float(query @ keys[i, kv_head]) / math.sqrt(d)) for i in range(seen)]
            weights[row, member] = np.array(scores[: n - rows]) / sum(scores)
    return weights


@pytest.mark.parametrize("reduction", Reduction)
@pytest.mark.parametrize("kind", Pool)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 4, 2, 17), (5, 6, 1, 30), (4, 3, 3, 9)])
def test_importance_is_the_reduced_and_pooled_causal_attention(reduction, kind, shape):
    rows, heads, kv_heads, n = shape
    rng = np.random.default_rng(rows * n)
    queries = rng.standard_normal((rows, heads, 8), dtype=np.float32)
    keys = rng.standard_normal((n, kv_heads, 8), dtype=np.float32)
    policy = SpecKv(capacity=99, pool=kind, kernel=3, reduction=reduction)
    got = kv_importance(queries, keys, policy)
    assert (got.dtype, got.shape) == (np.float32, (kv_heads, n - rows))
    over = np.max if reduction is Reduction.MAX else np.sum
    for head in range(kv_heads):
        expected = over(attention_by_definition(queries, keys, head), axis=(0, 1)).astype(np.float32)
        np.testing.assert_allclose(got[head], pool(expected, kind, 3), rtol=1e-5)


def test_large_scores_do_not_overflow():
    queries, keys = np.full((2, 1, 4), 1e4, dtype=np.float32), np.ones((6, 1, 4), dtype=np.float32)
    keys[1] = 2
    importance = kv_importance(queries, keys, SpecKv(capacity=40, kernel=1))
    assert importance.tolist() == [[0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("rows", [6, 7])
def test_rows_without_a_key_before_them_are_refused(rows):
    queries, keys = np.ones((rows, 2, 4), dtype=np.float32), np.ones((6, 1, 4), dtype=np.float32)
    with pytest.raises(InvalidRequest) as refusal:
        kv_importance(queries, keys, SpecKv(capacity=40))
    assert (refusal.value.field, refusal.value.value) == ("spec_kv.window", rows)


def test_the_final_prompt_token_scores_beside_window_and_lookahead():
    assert scoring_rows(window=32, lookahead_tokens=24) == 57
    assert scoring_rows(window=32, lookahead_tokens=0) == 33
