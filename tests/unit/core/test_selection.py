from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from presift.core.errors import BudgetExceeded, InternalError, InvalidRequest
from presift.core.importance import coverage
from presift.core.policies import Adaptive, Pool, SpecPc
from presift.core.pooling import pool
from presift.core.selection import select
from presift.core.spans import Span, covered

# Few distinct values, so that ties are the rule.
SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)


def importances(most=120):
    return hnp.arrays(np.float32, st.integers(1, most), elements=SCORES)


@st.composite
def policies(draw):
    window = draw(st.integers(1, 20))
    return SpecPc(
        capacity=draw(st.integers(window, 140)),
        window=window,
        pool=draw(st.sampled_from(Pool)),
        kernel=draw(st.integers(1, 40)),
        neighbors=draw(st.integers(0, 40)),
    )


@st.composite
def protected_in(draw, tokens):
    spans = draw(st.lists(st.tuples(st.integers(0, tokens - 1), st.integers(1, 12)), max_size=3))
    return tuple(Span(start, min(start + length, tokens)) for start, length in spans)


@st.composite
def tasks(draw):
    importance = draw(importances())
    return importance, draw(policies()), draw(protected_in(importance.size))


def by_definition(importance, policy, protected):
    """Steps 5 to 8 of the design, candidate by candidate: the set of kept tokens."""
    n = len(importance)
    pooled = pool(importance, policy.pool, policy.kernel)
    peaks = sorted(range(n), key=lambda i: (-pooled[i], i))[: policy.capacity]
    before = (policy.neighbors - 1) // 2
    reach = range(-before, policy.neighbors - before) if policy.neighbors else [0]
    offsets = sorted(reach, key=lambda d: (abs(d), d))
    order = [*range(n - policy.window, n), *(i for span in protected for i in range(span.start, span.end))]
    order += [min(max(peak + offset, 0), n - 1) for peak in peaks for offset in offsets]
    return set(list(dict.fromkeys(order))[: policy.capacity])


def selected(importance, policy, protected):
    """None where the protected tokens do not fit."""
    try:
        return select(importance, policy, protected)
    except BudgetExceeded:
        return None


@given(tasks())
@example((np.zeros(100, dtype=np.float32), SpecPc(capacity=40, window=2, kernel=4, neighbors=4), (Span(0, 9),)))
def test_the_kept_tokens_are_those_of_the_definition(task):
    importance, policy, protected = task
    mask = selected(importance, policy, protected)
    assume(mask is not None)
    if importance.size > policy.capacity:
        assert set(mask.indices.tolist()) == by_definition(importance, policy, protected)


@given(tasks())
def test_exactly_the_capacity_is_kept(task):
    importance, policy, protected = task
    mask = selected(importance, policy, protected)
    assume(mask is not None)
    assert mask.prompt_tokens == importance.size
    assert mask.kept_tokens == min(policy.capacity, importance.size)
    assert (np.diff(mask.indices) > 0).all()


@given(tasks())
def test_window_and_protected_spans_are_kept_or_the_budget_is_refused(task):
    importance, policy, protected = task
    mask = selected(importance, policy, protected)
    n = importance.size
    must = covered((*protected, Span(max(0, n - policy.window), n)), n)
    assert (mask is None) == (must.sum() > policy.capacity < n)
    if mask is not None:
        assert mask.kept[must].all()


@given(tasks())
def test_the_same_arguments_give_the_same_mask_and_stay_as_they_were(task):
    importance, policy, protected = task
    before = importance.copy()
    first, again = selected(importance, policy, protected), selected(importance.copy(), policy, protected[::-1])
    assert first == again
    np.testing.assert_array_equal(importance, before)


@given(importances(), policies())
def test_what_was_selected_is_not_compressed_again(importance, policy):
    mask = select(importance, policy)
    assert select(importance[mask.kept], policy).kept.all()


@given(importances(300), st.integers(1, 60))
def test_scaling_the_importance_changes_nothing(importance, capacity):
    policy = SpecPc(capacity=capacity, window=1, kernel=8)
    assert select(importance, policy) == select(importance * np.float32(4), policy)


def test_peaks_beyond_the_first_block_are_reached():
    # Equal scores: the peaks are 0, 1, 2 ..., so each block but the first adds one new token per peak.
    mask = select(np.zeros(5000, dtype=np.float32), SpecPc(capacity=2000, window=32, neighbors=16))
    assert mask.indices.tolist() == [*range(2000 - 32), *range(5000 - 32, 5000)]


def test_equal_tokens_are_kept_by_index():
    importance = np.array([1, 3, 2, 3, 2, 3, 0], dtype=np.float32)
    policy = SpecPc(capacity=3, window=1, pool=Pool.NONE, neighbors=0)
    assert select(importance, policy).indices.tolist() == [1, 3, 6]


@pytest.mark.parametrize(
    ("capacity", "expected"), [(2, [5, 9]), (3, [4, 5, 9]), (4, [4, 5, 6, 9]), (5, [4, 5, 6, 7, 9])]
)
def test_neighbours_come_nearest_first_and_the_earlier_of_two(capacity, expected):
    importance = np.zeros(10, dtype=np.float32)
    importance[5] = 1
    policy = SpecPc(capacity=capacity, window=1, pool=Pool.NONE, neighbors=4)
    assert select(importance, policy).indices.tolist() == expected


def test_a_protected_span_displaces_the_ranked_tokens():
    importance = np.arange(20, dtype=np.float32)
    policy = SpecPc(capacity=6, window=2, pool=Pool.NONE, neighbors=0)
    assert select(importance, policy, [Span(0, 3)]).indices.tolist() == [0, 1, 2, 17, 18, 19]


def test_protected_tokens_beyond_the_capacity_are_refused():
    policy = SpecPc(capacity=6, window=2)
    with pytest.raises(BudgetExceeded) as refusal:
        select(np.ones(20, dtype=np.float32), policy, [Span(0, 3), Span(2, 5)])
    assert (refusal.value.field, refusal.value.value) == ("protected_spans", 7)
    assert "capacity (6)" in refusal.value.details["limit"]


@pytest.mark.parametrize("capacity", [6, 100])
def test_a_span_beyond_the_prompt_is_refused_even_where_all_is_kept(capacity):
    with pytest.raises(InvalidRequest, match="protected_spans"):
        select(np.ones(20, dtype=np.float32), SpecPc(capacity=capacity, window=2), [Span(18, 21)])


@pytest.mark.parametrize("capacity", [2, 100])
def test_importance_that_cannot_be_sorted_is_refused_even_where_all_is_kept(capacity):
    with pytest.raises(InternalError, match="finite"):
        select(np.array([1, np.nan, 2], dtype=np.float32), SpecPc(capacity=capacity, window=1))


@st.composite
def adaptive_tasks(draw):
    """Importance, the mass that coverage is a share of, a policy that adapts, protected spans."""
    importance, policy, protected = draw(tasks())
    mass = draw(hnp.arrays(np.float32, importance.size, elements=SCORES))
    least = draw(st.integers(policy.window, policy.capacity))
    wanted = draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]) | st.floats(0.01, 1.0))
    return importance, mass, replace(policy, adaptive=Adaptive(wanted, least, draw(st.integers(1, 9)))), protected


def reaches(mass, mask, adaptive):
    return np.float32(coverage(mass, mask.kept)) >= np.float32(adaptive.coverage)


@given(adaptive_tasks())
def test_what_adapts_is_the_selection_at_the_least_capacity_that_covers_enough(task):
    """By definition: one selection at every capacity that there may be, the first that reaches it, else the last."""
    importance, mass, policy, protected = task
    adaptive, fixed = policy.adaptive, replace(policy, adaptive=None)
    assume(importance.size > policy.capacity and selected(importance, fixed, protected) is not None)
    sizes = [
        size for size in range(adaptive.min_capacity, policy.capacity + 1) if adaptive.allows(size, policy.capacity)
    ]
    masks = [selected(importance, replace(fixed, capacity=size), protected) for size in sizes]
    wanted = next((mask for mask in masks if mask is not None and reaches(mass, mask, adaptive)), masks[-1])
    assert select(importance, policy, protected, mass) == wanted


@given(adaptive_tasks(), st.floats(0.01, 1.0))
def test_more_coverage_keeps_more_and_all_of_the_same(task, other):
    importance, mass, policy, protected = task
    assume(selected(importance, replace(policy, adaptive=None), protected) is not None)
    less, more = sorted((policy.adaptive.coverage, other))
    small, large = (
        select(importance, replace(policy, adaptive=replace(policy.adaptive, coverage=wanted)), protected, mass)
        for wanted in (less, more)
    )
    assert (small.kept <= large.kept).all()


def test_the_upper_bound_is_kept_where_it_does_not_reach_the_coverage():
    importance = np.arange(20, dtype=np.float32)
    policy = SpecPc(capacity=6, window=2, pool=Pool.NONE, neighbors=0, adaptive=Adaptive(0.9, 3))
    mask = select(importance, policy, (), importance)
    assert mask == select(importance, replace(policy, adaptive=None))
    assert coverage(importance, mask.kept) < 0.9


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [(0.5, [7, 9]), (0.6, [5, 7, 9]), (0.75, [5, 7, 9]), (0.76, [3, 5, 7, 9]), (1.0, [1, 3, 5, 7, 9])],
)
def test_coverage_is_of_the_mass_and_the_order_by_importance(wanted, kept):
    importance, mass = (np.zeros(10, dtype=np.float32) for _ in range(2))
    importance[[7, 5, 3, 1]] = [4, 3, 2, 1]
    mass[[7, 5, 3, 1]] = [4, 2, 1, 1]
    policy = SpecPc(capacity=6, window=1, pool=Pool.NONE, neighbors=0, adaptive=Adaptive(wanted, 1))
    assert select(importance, policy, (), mass).indices.tolist() == kept


def test_where_there_is_no_mass_to_lose_the_least_is_kept():
    policy = SpecPc(capacity=6, window=2, adaptive=Adaptive(1.0, 4))
    assert select(np.ones(20, dtype=np.float32), policy, (), np.zeros(20, dtype=np.float32)).kept_tokens == 4


@pytest.mark.parametrize(
    "mass", [None, np.ones(19, dtype=np.float32), np.ones(20), np.full(20, np.nan, dtype=np.float32)]
)
def test_what_adapts_needs_the_mass_that_it_is_to_cover(mass):
    policy = SpecPc(capacity=6, window=2, adaptive=Adaptive(0.5, 4))
    with pytest.raises(InternalError):
        select(np.ones(20, dtype=np.float32), policy, (), mass)
