import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from presift.core.errors import InternalError
from presift.core.importance import check_importance, coverage, window_weights

IMPORTANCE = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1000, width=32))


@st.composite
def kept_importance(draw):
    importance = draw(IMPORTANCE)
    return importance, draw(hnp.arrays(np.bool_, importance.size))


@given(kept_importance())
def test_coverage_is_the_kept_share(case):
    importance, kept = case
    total = sum(importance.tolist())
    share = sum(importance[kept].tolist()) / total if total else 1.0
    assert coverage(importance, kept) == pytest.approx(share)
    assert 0.0 <= coverage(importance, kept) <= 1.0


@given(IMPORTANCE)
def test_all_kept_covers_all_and_none_kept_nothing(importance):
    assert coverage(importance, np.ones(importance.size, dtype=np.bool_)) == 1.0
    nothing = coverage(importance, np.zeros(importance.size, dtype=np.bool_))
    assert nothing == (0.0 if importance.any() else 1.0)


def test_coverage_is_clamped_where_negative_values_would_carry_it_beyond_one():
    importance = np.array([2, -1], dtype=np.float32)
    assert coverage(importance, np.array([True, False])) == 1.0
    assert coverage(importance, np.array([False, True])) == 0.0


def test_coverage_sums_in_float64():
    # In float32 the 2**24 swallows every one after it.
    importance = np.ones(2**12 + 1, dtype=np.float32)
    importance[0] = 2**24
    kept = np.arange(importance.size) > 0
    assert coverage(importance, kept) == 2**12 / (2**24 + 2**12)


def test_coverage_of_flags_of_another_length_is_refused():
    with pytest.raises(InternalError) as refusal:
        coverage(np.ones(3, dtype=np.float32), np.ones(4, dtype=np.bool_))
    assert refusal.value.details == {"field": "kept", "value": "(4,)", "limit": "(3,)"}


@pytest.mark.parametrize(
    "importance",
    [
        np.ones(3, dtype=np.float64),
        np.ones((3, 1), dtype=np.float32),
        np.ones(0, dtype=np.float32),
        np.array([1, np.nan], dtype=np.float32),
        np.array([1, np.inf], dtype=np.float32),
    ],
    ids=["float64", "two axes", "empty", "nan", "inf"],
)
def test_importance_that_cannot_be_sorted_is_refused(importance):
    with pytest.raises(InternalError) as refusal:
        check_importance(importance)
    assert refusal.value.details["field"] == "importance"
    assert refusal.value.details.keys() == {"field", "value", "limit"}


@given(st.integers(2, 300))
def test_weights_rise_evenly_from_nothing_to_one(window):
    weights = window_weights(window, weighted=True)
    assert weights.dtype == np.float32
    assert (weights[0], weights[-1]) == (0.0, 1.0)
    np.testing.assert_allclose(weights, [row / (window - 1) for row in range(window)], atol=1e-7)


@given(st.integers(1, 300))
def test_unweighted_rows_count_the_same(window):
    weights = window_weights(window, weighted=False)
    assert weights.dtype == np.float32
    assert weights.tolist() == [1.0] * window


def test_a_single_row_counts_fully():
    assert window_weights(1, weighted=True).tolist() == [1.0]
