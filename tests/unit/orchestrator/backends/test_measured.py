"""Numbers of a faulty target or draft: dropped where they arrive."""

from math import inf, isfinite, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.backends.draft_codec import score_from_wire
from presift.orchestrator.backends.measured import milliseconds
from presift.orchestrator.backends.target_codec import usage_from_wire
from presift.v1 import draft_pb2, plan_pb2, target_pb2

FAULTY = [nan, inf, -inf, -1.0, 1e308]


@pytest.mark.parametrize("value", [*FAULTY, 5e-324, 1e-320, 0.0])
def test_a_targets_faulty_numbers_are_unknown(value):
    faulty = {name: value for name in ("ttft_ms", "score_ms", "publish_ms")}
    assert {getattr(usage_from_wire(target_pb2.TargetUsage(**faulty)), name) for name in faulty} == {0.0}


@pytest.mark.parametrize("value", FAULTY)
def test_a_targets_faulty_means_and_shares_are_unknown(value):
    value = min(value, 3e38)  # the shares are float32
    usage = usage_from_wire(target_pb2.TargetUsage(kv_tokens_mean=value, coverage=value, coverage_min=value))
    assert (usage.kv_tokens_mean, usage.coverage, usage.coverage_min) == (0.0, None, None)


def test_numbers_in_range_stay():
    wire = target_pb2.TargetUsage(ttft_ms=12.5, score_ms=1.5, kv_tokens_peak=40, kv_tokens_mean=33.5, coverage=0.5)
    usage = usage_from_wire(wire)
    assert (usage.ttft_ms, usage.score_ms, usage.kv_tokens_mean, usage.coverage) == (12.5, 1.5, 33.5, 0.5)


@pytest.mark.parametrize("value", [*FAULTY, 1e-320])
def test_a_drafts_faulty_time_in_its_queue_is_unknown(value):
    mask = plan_pb2.TokenMask(prompt_tokens=8, kept=b"\x01")
    reply = draft_pb2.ScoreResponse(token_mask=mask, timings=draft_pb2.ScoreTimings(queue_ms=value))
    assert score_from_wire(reply).queue_ms == 0.0


@given(st.floats())
def test_every_time_is_finite(value):
    assert isfinite(milliseconds(value)) and milliseconds(value) >= 0.0
