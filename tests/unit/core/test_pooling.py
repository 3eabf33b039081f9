import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from presift.core.policies import Pool
from presift.core.pooling import pool

VALUES = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32))
KERNELS = st.integers(1, 80)


def naive(values, kind, kernel):
    """The definition, one value at a time: float32[n] -> float32[n]."""
    before = (kernel - 1) // 2
    pooled = []
    for i in range(len(values)):
        reach = range(i - before, i - before + kernel)
        seen = [values[j] if 0 <= j < len(values) else np.float32(0) for j in reach]
        if kind is Pool.MAX:
            pooled.append(max(seen))
        else:
            total = np.float32(0)
            for value in seen:
                total += value
            pooled.append(total / np.float32(kernel))
    return np.array(pooled, dtype=np.float32)


@given(VALUES, st.sampled_from([Pool.MAX, Pool.MEAN]), KERNELS)
def test_every_value_is_that_of_the_definition_to_the_last_bit(values, kind, kernel):
    pooled = pool(values, kind, kernel)
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled, naive(values, kind, kernel))


@given(VALUES, st.sampled_from(Pool), KERNELS)
def test_rows_are_pooled_apart(values, kind, kernel):
    rows = np.stack([values, values[::-1]])
    pooled = pool(rows, kind, kernel)
    np.testing.assert_array_equal(pooled, np.stack([pool(row, kind, kernel) for row in rows]))


@given(VALUES, KERNELS)
def test_none_changes_nothing(values, kernel):
    np.testing.assert_array_equal(pool(values, Pool.NONE, kernel), values)


@given(VALUES, st.sampled_from([Pool.MAX, Pool.MEAN]), KERNELS)
def test_the_argument_is_left_alone(values, kind, kernel):
    before = values.copy()
    pool(values, kind, kernel)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    ("kind", "kernel", "expected"),
    [
        (Pool.MAX, 3, [0, 0, 8, 8, 8, 0, 0]),
        (Pool.MAX, 4, [0, 8, 8, 8, 8, 0, 0]),  # even: it leans to the future, so the peak shows earlier
        (Pool.MEAN, 4, [0, 2, 2, 2, 2, 0, 0]),
    ],
)
def test_a_peak_lifts_its_neighbours(kind, kernel, expected):
    peak = np.array([0, 0, 0, 8, 0, 0, 0], dtype=np.float32)
    assert pool(peak, kind, kernel).tolist() == expected


def test_the_mean_counts_the_padding():
    assert pool(np.ones(3, dtype=np.float32), Pool.MEAN, 3).tolist() == pytest.approx([2 / 3, 1, 2 / 3])


def test_the_maximum_sees_the_padding():
    assert pool(np.full(3, -1, dtype=np.float32), Pool.MAX, 3).tolist() == [0, -1, 0]
