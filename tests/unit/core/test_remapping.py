"""Importance carried from one tokenisation to another: nothing is lost, and nothing lands where it does not belong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InternalError
from presift.core.remapping import remapped


def offsets(*ranges):
    return np.array(ranges, dtype=np.int64).reshape(-1, 2)


def carry(importance, source, target):
    return remapped(np.array(importance, dtype=np.float32), offsets(*source), offsets(*target)).tolist()


@pytest.mark.parametrize(
    ("importance", "source", "target", "expected"),
    [
        pytest.param([1, 2], [(0, 2), (2, 5)], [(0, 2), (2, 5)], [1, 2], id="the same tokens"),
        pytest.param([1, 2], [(0, 2), (2, 5)], [(0, 5)], [3], id="merged"),
        pytest.param([4], [(0, 4)], [(0, 1), (1, 4)], [1, 3], id="split by characters"),
        pytest.param([4, 2], [(0, 4), (4, 6)], [(0, 2), (2, 5), (5, 6)], [2, 3, 1], id="across borders"),
        pytest.param([6], [(0, 1)], [(0, 1), (0, 1), (0, 1)], [2, 2, 2], id="a character in three tokens"),
        pytest.param([1, 2, 3], [(0, 1), (0, 1), (0, 2)], [(0, 1), (1, 2)], [4.5, 1.5], id="shared by the source"),
        pytest.param([5, 1], [(0, 0), (0, 2)], [(0, 1), (1, 2)], [5.5, 0.5], id="a special token before"),
        pytest.param([1, 5], [(0, 2), (2, 2)], [(0, 1), (1, 2)], [0.5, 5.5], id="a special token after"),
        pytest.param([3], [(0, 3)], [(0, 1), (2, 3)], [1, 2], id="a character that no token holds"),
        pytest.param([3], [(2, 5)], [(0, 1)], [3], id="nothing holds it or follows"),
        pytest.param([3, 1], [(0, 1), (1, 2)], [(0, 0), (0, 2), (2, 2)], [0, 4, 0], id="targets without characters"),
        pytest.param([3, 1], [(1, 2), (0, 1)], [(1, 2), (0, 1)], [3, 1], id="any order"),
    ],
)
def test_by_hand(importance, source, target, expected):
    assert carry(importance, source, target) == expected


RANGE = st.tuples(st.integers(0, 12), st.integers(0, 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
WEIGHT = st.floats(0, 100, width=32)


def by_definition(importance, source, target):
    """Character by character, as the docstring says."""
    held = sorted({c for start, end in target for c in range(start, end)})
    result = [0.0] * len(target)
    for mass, (start, end) in zip(importance, source, strict=True):
        characters = range(start, max(end, start + 1))
        for character in characters:
            home = next((c for c in held if c >= character), held[-1])
            holders = [j for j, (first, last) in enumerate(target) if first <= home < last]
            for j in holders:
                result[j] += mass / len(characters) / len(holders)
    return result


@given(
    tokens=st.lists(st.tuples(WEIGHT, RANGE), min_size=1, max_size=12), target=st.lists(RANGE, min_size=1, max_size=12)
)
def test_any_offsets(tokens, target):
    importance, source = [mass for mass, _ in tokens], [each for _, each in tokens]
    if all(start == end for start, end in target):
        with pytest.raises(InternalError):
            carry(importance, source, target)
        return
    made = carry(importance, source, target)
    assert made == pytest.approx(by_definition(importance, source, target), rel=1e-5, abs=1e-6)
    assert sum(made) == pytest.approx(sum(importance), rel=1e-5, abs=1e-6)
    assert min(made) >= 0.0


@given(st.lists(WEIGHT, min_size=1, max_size=60), st.data())
def test_equal_tokens_keep_their_values(importance, data):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=len(importance), max_size=len(importance)))
    ends = np.cumsum(lengths)
    ranges = list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))
    assert carry(importance, ranges, ranges) == pytest.approx(importance, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize(
    ("importance", "source", "target"),
    [
        ([1.0, 2.0], [(0, 1)], [(0, 1)]),
        ([np.nan], [(0, 1)], [(0, 1)]),
        ([1.0], [(2, 1)], [(0, 1)]),
        ([1.0], [(-1, 1)], [(0, 1)]),
        ([1.0], [(0, 1)], [(1, 1)]),
        ([1.0], [(0, 1)], []),
        ([], [], [(0, 1)]),
    ],
)
def test_what_cannot_be_carried(importance, source, target):
    with pytest.raises(InternalError):
        carry(importance, source, target)
