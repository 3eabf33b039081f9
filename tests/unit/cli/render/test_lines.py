"""Decisions, usage, explanations and replicas as lines of text."""

from dataclasses import replace

import numpy as np
import pytest

from presift.cli.render.lines import decision_line, explanation_lines, replica_line, usage_line
from presift_client import Decision, Model, Replica, Usage

MODEL = Model("m", "r", 100)
DECISION = Decision(
    "spec_pc", "over_budget", "9 prompt tokens exceed 4", 9, 4, 4, 1, 0.875, "hit", MODEL, MODEL, 1.0, 2.0, 3.0
)


def test_decision_line():
    line = decision_line(DECISION)
    for word in ("spec_pc", "over_budget", "9 prompt tokens exceed 4", "kept 4 of 9", "coverage 0.88", "cache hit"):
        assert word in line
    assert "\n" not in line


def test_decision_line_without_coverage():
    assert "coverage" not in decision_line(replace(DECISION, coverage=None))


DROPPED = replace(
    DECISION, route="spec_kv", kv_tokens=257, kv_capacity=256, kv_selection="target_lookahead", keep_full_prefix=True
)


def test_decision_line_of_a_route_that_drops_kv():
    line = decision_line(replace(DROPPED, draft_ms=30.0, prefill_ms=41.0))
    for word in ("257 KV tokens", "capacity 256", "target_lookahead", "full prefix kept", "41 ms", "30 ms"):
        assert word in line
    assert "\n" not in line
    freed = decision_line(replace(DROPPED, keep_full_prefix=False))
    assert "full prefix freed" in freed and "drafting" not in freed
    assert "KV" not in decision_line(DECISION)


def test_decision_line_of_kv_that_is_selected_while_generating():
    renewing = replace(DROPPED, kv_lookahead="target", first_full_tokens=16, renew_every=12, renew_window=32)
    line = decision_line(renewing)
    words = "lookahead by the target, first 16 tokens on the full KV, renewed at least every 12 tokens by the newest 32"
    assert words in line
    drafted = decision_line(replace(DROPPED, kv_lookahead="draft", first_full_tokens=0, renew_every=0, renew_window=32))
    assert "lookahead by the draft" in drafted and not any(word in drafted for word in ("renewed", "first", "newest"))


USAGE = Usage(9, 4, 5, 2, 3, "stop", 7.0, 21.4, 80.0)


def test_usage_line():
    line = usage_line(USAGE)
    for word in (
        "21 ms",
        "7 ms in the target",
        "3 tokens",
        "80 ms",
        "stop",
        "5 KV tokens held for 9",
        "2 of them cached",
    ):
        assert word in line
    assert not any(word in line for word in ("KV scored", "reused", "coverage"))


def test_usage_line_of_a_route_that_drops_kv():
    selected = usage_line(replace(USAGE, score_ms=140.2, publish_ms=4.4, coverage=0.875))
    for word in ("KV scored in 140 ms", "published in 4 ms", "coverage 0.88"):
        assert word in selected
    reused = usage_line(replace(USAGE, reused_entry=True))
    assert "compressed entry reused" in reused and "scored" not in reused


def test_usage_line_with_renewals():
    line = usage_line(replace(USAGE, renewals=4, coverage_min=0.625, kv_tokens_mean=300.4))
    assert "4 renewals, lowest coverage 0.62, 300 KV tokens on average" in line and "skipped" not in line
    assert "0 renewals (2 skipped)" in usage_line(replace(USAGE, renewals_skipped=2))
    assert "renewals" not in usage_line(replace(USAGE, kv_tokens_mean=300.4, coverage_min=0.5))


def test_usage_line_with_accepted_tokens():
    assert "5 tokens accepted from the lookahead" in usage_line(replace(USAGE, accepted_tokens=5))
    assert "accepted" not in usage_line(USAGE)


def test_usage_line_of_a_migrated_answer():
    assert "continued by a second target]" in usage_line(replace(USAGE, migrated=True))
    assert "second target" not in usage_line(USAGE)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "a:1 healthy, 2 in flight"),
        ({"healthy": False, "breaker": "open"}, "a:1 unhealthy, circuit breaker open, 2 in flight"),
        ({"unused": "another model"}, "a:1 healthy, 2 in flight, not used: another model"),
    ],
)
def test_replica_line(changes, line):
    replica = Replica("a:1", "draft", True, "closed", 2, "", "a:1")
    assert replica_line(replace(replica, **changes)) == line


def test_explanation_lines(explained):
    assert len(explanation_lines(explained(["a"]))) == 1
    kv = np.ones((1, 1, 2), dtype=bool)
    lines = explanation_lines(explained(["a", "b"], kv=kv))
    assert "all layers, all KV heads; 0 tokens are dropped everywhere" in lines[1] and "0.75" in lines[2]
