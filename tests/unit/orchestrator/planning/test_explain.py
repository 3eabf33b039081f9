"""The fate of every run of prompt tokens."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from presift.core.masks import KvMask
from presift.core.plan import ModelInfo, Route
from presift.core.spans import Span, covered, merge
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.explain import ExplainedSpan, explain
from presift.orchestrator.planning.kept_kv import KeptKv
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.decision import Decision, Plan

MODEL = ModelInfo("m", "r", "f", 100, 1, 1, 100)


def plan(kept, protected=(), importance=None):
    kept = np.asarray(kept, dtype=np.bool_)
    read = int(kept.sum())
    ids = np.arange(kept.size, dtype=np.uint32)
    decision = Decision(Route.SPEC_PC, Reason.REQUESTED, "", kept.size, read, read, 0, MODEL, 0.0)
    return Plan(decision, ids[kept], kept, TokenizedPrompt(ids, protected), importance=importance)


def test_runs_of_one_fate():
    importance = np.array([1, 1, 2, 4, 0, 0], dtype=np.float32)
    spans = explain(plan([1, 1, 0, 0, 1, 1], (Span(1, 2),), importance), None)
    assert spans == [
        ExplainedSpan(Span(0, 1), None, True, False, pytest.approx(1 / 8)),
        ExplainedSpan(Span(1, 2), None, True, True, pytest.approx(1 / 8)),
        ExplainedSpan(Span(2, 4), None, False, False, pytest.approx(6 / 8)),
        ExplainedSpan(Span(4, 6), None, True, False, 0.0),
    ]


def test_characters_of_runs():
    offsets = np.array([(0, 0), (0, 3), (3, 4), (3, 4), (4, 9)], dtype=np.int32)
    spans = explain(plan([1, 0, 0, 1, 1]), offsets)
    assert [span.characters for span in spans] == [None, Span(0, 4), Span(3, 9)]


def test_without_importance_shares_are_nothing():
    for importance in (None, np.zeros(3, dtype=np.float32)):
        assert [span.importance for span in explain(plan([1, 0, 1], (), importance), None)] == [0.0, 0.0, 0.0]


@given(data=st.data(), kept=st_numpy.arrays(np.bool_, st.integers(1, 60)))
def test_the_prompt_is_covered_and_shares_sum_to_one(data, kept):
    cuts = st.tuples(st.integers(0, kept.size - 1), st.integers(1, kept.size)).filter(lambda pair: pair[0] < pair[1])
    protected = merge(Span(*pair) for pair in data.draw(st.lists(cuts, max_size=4)))
    values = data.draw(st_numpy.arrays(np.float32, kept.size, elements=st.floats(0, 1e6, width=32)))
    spans = explain(plan(kept, protected, values), None)
    assert [span.tokens.start for span in spans] == [0, *(span.tokens.end for span in spans[:-1])]
    assert spans[-1].tokens.end == kept.size
    flags = covered(protected, kept.size)
    for span in spans:
        assert np.all(kept[span.tokens.start : span.tokens.end] == span.kept)
        assert np.all(flags[span.tokens.start : span.tokens.end] == span.protected)
    neighbours = itertools.pairwise(spans)
    assert all((one.kept, one.protected) != (other.kept, other.protected) for one, other in neighbours)
    assert sum(span.importance for span in spans) == pytest.approx(1 if values.sum() > 0 else 0)


def kept_kv(*rows, coverage=None):
    return KeptKv(KvMask(np.array([rows], dtype=np.bool_)), coverage)


def test_with_kept_kv_a_token_is_kept_where_any_pair_is():
    spans = explain(plan([1, 1, 1, 1, 1]), None, kept_kv([1, 1, 0, 0, 1], [1, 1, 1, 0, 1]))
    assert [(span.tokens, span.kept, span.kept_share) for span in spans] == [
        (Span(0, 2), True, 1.0),
        (Span(2, 3), True, 0.5),
        (Span(3, 4), False, 0.0),
        (Span(4, 5), True, 1.0),
    ]
    assert all(span.kept_share is None for span in explain(plan([1, 0]), None))


def test_a_span_of_every_token():
    importance = np.array([1, 3, 0], dtype=np.float32)
    spans = explain(plan([1, 1, 1], (), importance), None, span_per_token=True)
    assert [(span.tokens, span.importance) for span in spans] == [
        (Span(0, 1), 0.25),
        (Span(1, 2), 0.75),
        (Span(2, 3), 0.0),
    ]
    assert [span.tokens for span in explain(plan([1]), None, span_per_token=True)] == [Span(0, 1)]
