import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from presift.core.errors import InvalidRequest
from presift.core.spans import Span, check_within, covered, merge, spans_of

TOKENS = 40
SPANS = st.lists(
    st.tuples(st.integers(0, TOKENS - 1), st.integers(0, TOKENS - 1)).map(lambda ends: Span(min(ends), max(ends) + 1)),
    max_size=6,
)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (4, 3), (-2, -1)])
def test_an_empty_reversed_or_negative_span_is_refused(start, end):
    with pytest.raises(InvalidRequest) as refusal:
        Span(start, end)
    expected = {"field": "protected_spans", "value": f"[{start}, {end})", "limit": "0 <= start < end"}
    assert refusal.value.details == expected


@given(st.integers(0, 99), st.integers(1, 99))
def test_a_span_is_as_long_as_it_covers(start, length):
    assert len(Span(start, start + length)) == length


@given(SPANS)
def test_covered_flags_exactly_the_tokens_of_the_spans(spans):
    tokens = {i for span in spans for i in range(span.start, span.end)}
    assert set(np.flatnonzero(covered(spans, TOKENS)).tolist()) == tokens


@given(SPANS)
def test_merged_spans_cover_the_same_and_are_apart(spans):
    merged = merge(spans)
    np.testing.assert_array_equal(covered(merged, TOKENS), covered(spans, TOKENS))
    assert all(one.end < other.start for one, other in itertools.pairwise(merged))


@given(SPANS, st.randoms())
def test_merging_is_canonical(spans, random):
    shuffled = [*spans, *spans]
    random.shuffle(shuffled)
    assert merge(shuffled) == merge(spans) == merge(merge(spans))


@given(SPANS)
def test_merging_is_reading_the_flags_back(spans):
    assert merge(spans) == spans_of(covered(spans, TOKENS))


@given(hnp.arrays(np.bool_, st.integers(1, TOKENS)))
def test_spans_of_is_the_inverse_of_covered(flags):
    np.testing.assert_array_equal(covered(spans_of(flags), flags.size), flags)


@pytest.mark.parametrize("check", [check_within, covered])
def test_a_span_beyond_the_prompt_is_refused(check):
    check([Span(0, 10)], 10)
    with pytest.raises(InvalidRequest) as refusal:
        check([Span(0, 3), Span(9, 11)], 10)
    assert (refusal.value.field, refusal.value.value) == ("protected_spans", "[9, 11)")
    assert refusal.value.details["limit"].startswith("end <= 10")
