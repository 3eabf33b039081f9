"""Defaults for the connected draft: its calibrated heads, its middle layer, or what a setting demands."""

from dataclasses import replace

import pytest

from presift.core.plan import ModelInfo, Route
from presift.core.policies import Heads, KvSelection
from presift.orchestrator.config.policy_settings import PolicySettings, policy_defaults
from presift.orchestrator.planning.request_context import routes_without_lookahead
from presift.orchestrator.routing.choice import LEAST_CALIBRATED

PLAIN = ModelInfo("draft", "r", "f", 4096, 24, 2, 1000)
CALIBRATED = replace(PLAIN, head_profile="abc")
TRUNCATED = replace(CALIBRATED, layers=17, all_layers=24)


def scored_by(draft, **settings):
    return policy_defaults(PolicySettings(**settings)).for_draft(draft).scoring(LEAST_CALIBRATED)


@pytest.mark.parametrize(
    ("draft", "settings", "heads", "start_layer", "lookahead_tokens"),
    [
        (PLAIN, {}, Heads.ALL, 12, 8),
        (CALIBRATED, {}, Heads.CALIBRATED, None, 1),
        (CALIBRATED, {"heads": Heads.ALL}, Heads.ALL, 12, 8),
        (CALIBRATED, {"start_layer": 8}, Heads.ALL, 8, 8),
        (CALIBRATED, {"lookahead_tokens": 4}, Heads.CALIBRATED, None, 4),
        (PLAIN, {"lookahead_tokens": 4}, Heads.ALL, 12, 4),
        (TRUNCATED, {}, Heads.CALIBRATED, None, 1),
        (TRUNCATED, {"lookahead_tokens": 4}, Heads.CALIBRATED, None, 1),
        (replace(TRUNCATED, head_profile=""), {}, Heads.ALL, 8, 1),
    ],
)
def test_settings_and_draft_decide_what_scores(draft, settings, heads, start_layer, lookahead_tokens):
    policy = scored_by(draft, **settings)
    assert (policy.heads, policy.lookahead_tokens) == (heads, lookahead_tokens)
    assert start_layer is None or policy.start_layer == start_layer


def test_small_capacities_are_scored_with_the_lookahead():
    defaults = policy_defaults(PolicySettings()).for_draft(CALIBRATED)
    assert [defaults.scoring(capacity).lookahead_tokens for capacity in (32, 511, 512, 4096)] == [8, 8, 1, 1]
    assert defaults.scoring(511).heads is Heads.ALL and defaults.scoring(511).start_layer == 12
    truncated = policy_defaults(PolicySettings()).for_draft(TRUNCATED)
    assert truncated.scoring(64).heads is Heads.CALIBRATED


def test_sizes_and_pooling_are_the_same_with_and_without_a_profile():
    settings = {"capacity": 700, "window": 20, "kernel": 7, "neighbors": 8}
    for name in ("capacity", "window", "pool", "kernel", "neighbors", "weighted_query", "adaptive"):
        assert getattr(scored_by(PLAIN, **settings), name) == getattr(scored_by(CALIBRATED, **settings), name), name


def test_without_a_draft_nothing_is_resolved():
    defaults = policy_defaults(PolicySettings())
    assert defaults.for_draft(None) is defaults


@pytest.mark.parametrize(
    ("draft", "selection", "routes"),
    [
        (None, KvSelection.TARGET_LOOKAHEAD, set()),
        (CALIBRATED, KvSelection.TARGET_LOOKAHEAD, set()),
        (TRUNCATED, KvSelection.TARGET_LOOKAHEAD, {Route.SPEC_KV, Route.SPEC_KV_PC}),
        (TRUNCATED, KvSelection.DRAFT_MASK, {Route.SPEC_KV_PC}),
    ],
)
def test_a_draft_without_its_last_layers_serves_no_route_that_reads_its_lookahead(draft, selection, routes):
    found = routes_without_lookahead(draft, selection)
    assert found.keys() == routes
    assert all("17 of 24 layers" in reason for reason in found.values())
