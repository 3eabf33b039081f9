import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest
from presift.core.plan import CompressedPrompt, ModelInfo, Route, SpanRef
from presift.core.policies import POLICIES

from ...builders import token_mask

DRAFT = ModelInfo("draft", "r1", "f1", context_tokens=4096, layers=2, kv_heads=1, vocabulary_size=512)
MASK = token_mask([0, 3], 4)


@given(st.none() | st.floats(0, 1))
def test_coverage_is_a_share_or_unknown(coverage):
    assert CompressedPrompt(MASK, (), coverage, DRAFT).coverage == coverage


@pytest.mark.parametrize("coverage", [-0.01, 1.01, math.nan, math.inf])
def test_other_coverage_is_refused(coverage):
    with pytest.raises(InvalidRequest) as refusal:
        CompressedPrompt(MASK, (), coverage, DRAFT)
    assert refusal.value.details == {"field": "coverage", "value": str(coverage), "limit": "0..1"}


def test_compressed_prompts_are_values():
    one = CompressedPrompt(MASK, (7,), 0.5, DRAFT)
    same = CompressedPrompt(token_mask([0, 3], 4), (7,), 0.5, DRAFT)
    assert one == same
    assert hash(one) == hash(same)
    assert one != CompressedPrompt(token_mask([0, 2], 4), (7,), 0.5, DRAFT)


def test_every_policy_has_a_route_and_full_needs_none():
    assert {route.value for route in Route} == {*POLICIES, "full"}


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_kv_capacity_that_cannot_be(capacity):
    with pytest.raises(InvalidRequest) as refusal:
        CompressedPrompt(MASK, (), None, DRAFT, capacity)
    assert refusal.value.field == "kv_capacity"


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_where_it_was_made_is_no_part_of_what_it_is():
    one, other = (CompressedPrompt(MASK, (7,), 0.5, DRAFT, made_in=made_in) for made_in in (None, SpanRef(TRACE, SPAN)))
    assert one == other


@pytest.mark.parametrize(
    ("trace_id", "span_id", "field"),
    [
        (TRACE[1:], SPAN, "trace_id"),
        (TRACE.upper(), SPAN, "trace_id"),
        ("0" * 32, SPAN, "trace_id"),
        (TRACE, SPAN + "0", "span_id"),
        (TRACE, "g" * 16, "span_id"),
        (TRACE, "0" * 16, "span_id"),
    ],
)
def test_ids_that_no_span_has_are_refused(trace_id, span_id, field):
    with pytest.raises(InvalidRequest) as refusal:
        SpanRef(trace_id, span_id)
    assert refusal.value.field == field


def test_a_short_revision_shows_what_two_drafts_of_the_same_weights_differ_in():
    dtypes = "int8-float32", "bfloat16"
    one, other = (replace(DRAFT, revision=f"{'a' * 64}-{dtype}-heads{'b' * 64}") for dtype in dtypes)
    assert one.short_revision == "aaaaaaaaaaaa-int8-float32-headsbbbbbbb"
    assert other.short_revision == "aaaaaaaaaaaa-bfloat16-headsbbbbbbb"
