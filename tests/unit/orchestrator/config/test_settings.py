"""Settings make the defaults of a request; contradictions are refused at the start."""

import re
from inspect import get_annotations

import pytest
from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import KvSelection, Pool, Reduction, SpecKv
from presift.orchestrator.app import quality_thresholds
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import AutoCapacity, KvLookahead
from presift.orchestrator.routing.choice import ROUTE_ORDER
from presift.orchestrator.routing.quality_gate import Thresholds


@pytest.fixture
def read(monkeypatch):
    """flags -> the settings."""

    def read(*flags):
        monkeypatch.setattr("sys.argv", ["orchestrator", *flags])
        return OrchestratorSettings()

    return read


def test_defaults_of_dropping_kv(read):
    defaults = policy_defaults(read())
    assert defaults.spec_kv == SpecKv(512, window=32, pool=Pool.MAX, kernel=7, reduction=Reduction.MAX)
    assert defaults.spec_kv.lookahead_tokens == 24 and defaults.cascade_capacity == 2048
    assert defaults.spec_kv.selection is KvSelection.TARGET_LOOKAHEAD
    assert read().prefill_while_drafting and read().turn_memory_mib == 64


def test_what_is_selected_while_generating(read):
    names = ("lookahead", "first_full_tokens", "renew_every", "renew_window")
    defaults = policy_defaults(read())
    assert [getattr(defaults, name) for name in names] == [KvLookahead.AUTO, 16, 12, 32]
    flags = (
        "--kv-lookahead",
        "draft",
        "--kv-first-full-tokens",
        "8",
        "--kv-renew-every",
        "0",
        "--kv-renew-window",
        "9",
    )
    defaults = policy_defaults(read(*flags))
    assert [getattr(defaults, name) for name in names] == [KvLookahead.DRAFT, 8, 0, 9]


def test_flags_and_variables(read, monkeypatch):
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_KV_SELECTION", "draft_mask")
    settings = read("--kv-capacity", "256", "--kv-window", "16", "--kv-kernel", "5", "--no-prefill-while-drafting")
    assert policy_defaults(settings).spec_kv == SpecKv(256, window=16, kernel=5, selection=KvSelection.DRAFT_MASK)
    assert not settings.prefill_while_drafting


def test_cross_vocabulary_is_off_by_default(read):
    assert not read().cross_vocabulary
    settings = read("--cross-vocabulary", "--draft-tokenizer", "small")
    assert settings.cross_vocabulary and settings.draft_tokenizer == "small"


def test_settings_of_routing_and_estimates(read):
    assert policy_defaults(read()).route_order == ROUTE_ORDER == tuple(read().route_order.split(","))
    settings = read("--route-order", "full, spec_pc", "--no-learn-speeds", "--prefix-memory-mib", "64")
    assert policy_defaults(settings).route_order == (Route.FULL, Route.SPEC_PC)
    assert not settings.learn_speeds and settings.prefix_memory_mib == 64
    assert read().calibrate and not read("--no-calibrate").calibrate
    assert read("--calibration-limit-s", "3").calibration_limit_s == 3


@pytest.mark.parametrize("order", ["full,warp", "spec_pc", "full,spec_pc,spec_pc", ""])
def test_an_invalid_route_order_is_refused(read, order):
    with pytest.raises(InvalidRequest, match="route_order"):
        policy_defaults(read("--route-order", order))


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--auto-coverage", "0.9"), "auto_coverage 0.9"), (("--kv-selection", "draft_mask"), "kv_selection draft_mask")],
)
def test_the_targets_lookahead_is_refused_with_what_only_the_draft_can_do(read, flags, named):
    with pytest.raises(InvalidRequest, match=f"kv_lookahead.*draft or auto with {named}"):
        policy_defaults(read("--kv-lookahead", "target", *flags))
    for lookahead in ("draft", "auto"):
        assert policy_defaults(read("--kv-lookahead", lookahead, *flags)).lookahead == lookahead
    assert policy_defaults(read(*flags), {"kv_lookahead": KvLookahead.TARGET}).lookahead is KvLookahead.TARGET


@pytest.mark.parametrize("flags", [("--kv-kernel", "6"), ("--kv-capacity", "32")])
def test_an_invalid_policy_is_refused(read, flags):
    with pytest.raises(InvalidRequest):
        policy_defaults(read(*flags))


@pytest.mark.parametrize(
    "flags",
    [
        ("--kv-lookahead-tokens", "257"),
        ("--kv-kernel", "1027"),
        ("--turn-memory-mib", "-1"),
        ("--kv-lookahead", "both"),
        ("--kv-first-full-tokens", "0"),
        ("--kv-renew-every", "-1"),
        ("--kv-renew-window", "0"),
    ],
)
def test_a_value_out_of_range_is_refused(read, flags):
    with pytest.raises((ValidationError, SystemExit)):
        read(*flags)


def test_the_quality_guard(read):
    assert (read().guard_share, read().guard_max_new_tokens, quality_thresholds(read())) == (0.01, 256, Thresholds())
    flags = ("--guard-share", "0", "--no-guard-switches", "--guard-window", "30", "--guard-off-below", "0.2")
    settings = read(*flags, "--guard-on-above", "0.3", "--guard-least-samples", "5", "--guard-max-new-tokens", "8")
    assert quality_thresholds(settings) == Thresholds(0.2, 0.3, 5, 30, acts=False)
    assert (settings.guard_share, settings.guard_max_new_tokens) == (0.0, 8)
    with pytest.raises(InvalidRequest, match="guard_off_below"):
        quality_thresholds(read("--guard-off-below", "0.9"))
    with pytest.raises((ValidationError, SystemExit)):
        read("--guard-share", "1.5")


def test_a_coverage_makes_capacities_adapt(read):
    assert policy_defaults(read()).auto_capacity is None
    assert policy_defaults(read("--auto-coverage", "0.9")).auto_capacity == AutoCapacity(0.9)
    for bad in ("0", "1.1"):
        with pytest.raises((ValidationError, SystemExit)):
            read("--auto-coverage", bad)


def test_every_field_is_in_one_help_group(capsys):
    with pytest.raises(SystemExit):
        OrchestratorSettings(_cli_parse_args=["--help"])
    shown = capsys.readouterr().out
    groups = re.split(r"^(?=\S.*:$)", shown, flags=re.MULTILINE)[1:]
    titles = [group.partition(":\n")[0] for group in groups]
    assert titles[:3] == ["options", "Addresses and HTTP API", "Draft and target services"]
    assert titles[-1] == "Server, TLS and telemetry" and len(titles) == 14
    flags = [flag for group in groups for flag in re.findall(r"^  (--[a-z-]+)", group, flags=re.MULTILINE)]
    assert sorted(flags) == sorted(f"--{name.replace('_', '-')}" for name in OrchestratorSettings.model_fields)


def test_no_part_has_more_than_twenty_fields():
    parts = [part for part in OrchestratorSettings.__mro__ if part.__module__.startswith("presift")]
    assert max(len(get_annotations(part)) for part in parts) <= 20
