"""How far two answers are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.routing.agreement import agreement

ANSWERS = st.lists(st.integers(0, 5), max_size=40)


@pytest.mark.parametrize(
    ("ours", "theirs", "overlap", "first_divergence"),
    [
        ([], [], 1.0, None),
        ([1, 2, 3], [1, 2, 3], 1.0, None),
        ([1, 2, 3], [1, 2], 0.8, 2),
        ([1, 2, 3, 4], [1, 9, 3, 4], 0.75, 1),
        ([9, 1, 2, 3], [1, 2, 3], 6 / 7, 0),  # one token more, and nothing is in its place
        ([1, 2, 3], [3, 2, 1], 1 / 3, 0),  # the same tokens in another order are another answer
        ([1, 2], [3, 4], 0.0, 0),
        ([1], [], 0.0, 0),
    ],
)
def test_by_hand(ours, theirs, overlap, first_divergence):
    found = agreement(ours, theirs)
    assert (found.overlap, found.first_divergence) == (pytest.approx(overlap), first_divergence)
    assert found.is_exact == (ours == theirs)


@given(ANSWERS, ANSWERS)
def test_symmetric_and_within_bounds(ours, theirs):
    found = agreement(ours, theirs)
    assert found == agreement(theirs, ours)
    assert 0.0 <= found.overlap <= 1.0 and (found.overlap == 1.0) == found.is_exact == (ours == theirs)
    if found.first_divergence is not None:
        same = found.first_divergence
        assert ours[:same] == theirs[:same] and ours[same : same + 1] != theirs[same : same + 1]


@given(ANSWERS, ANSWERS)
def test_overlap_is_that_of_the_table(ours, theirs):
    row = [0] * (len(theirs) + 1)
    for our in ours:
        before = 0
        for index, their in enumerate(theirs, 1):
            before, row[index] = row[index], before + 1 if our == their else max(row[index], row[index - 1])
    tokens = len(ours) + len(theirs)
    assert agreement(ours, theirs).overlap == pytest.approx(2 * row[-1] / tokens if tokens else 1.0)
