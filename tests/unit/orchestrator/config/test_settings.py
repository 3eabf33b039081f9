"""Settings become defaults; what cannot hold is refused at the start."""

import pytest
from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import KvSelection, Pool, Reduction, SpecKv
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import AutoCapacity
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
    defaults = read().defaults()
    assert defaults.spec_kv == SpecKv(512, window=32, pool=Pool.MAX, kernel=7, reduction=Reduction.MAX)
    assert defaults.spec_kv.lookahead_tokens == 24 and defaults.cascade_capacity == 2048
    assert defaults.spec_kv.selection is KvSelection.TARGET_LOOKAHEAD
    assert read().prefill_while_drafting and read().turn_memory == 1024


def test_flags_and_variables(read, monkeypatch):
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_KV_SELECTION", "draft_mask")
    settings = read("--kv-capacity", "256", "--kv-window", "16", "--kv-kernel", "5", "--no-prefill-while-drafting")
    assert settings.defaults().spec_kv == SpecKv(256, window=16, kernel=5, selection=KvSelection.DRAFT_MASK)
    assert not settings.prefill_while_drafting


def test_cross_vocabulary_is_asked_for(read):
    assert not read().cross_vocabulary
    settings = read("--cross-vocabulary", "--draft-tokenizer", "small")
    assert settings.cross_vocabulary and settings.draft_tokenizer == "small"


def test_what_auto_goes_by(read):
    assert read().defaults().route_order == ROUTE_ORDER == tuple(read().route_order.split(","))
    settings = read("--route-order", "full, spec_pc", "--no-learn-speeds", "--prefix-memory", "6400")
    assert settings.defaults().route_order == (Route.FULL, Route.SPEC_PC)
    assert not settings.learn_speeds and settings.prefix_memory == 6400
    assert read().calibrate and not read("--no-calibrate").calibrate
    assert read("--calibration-limit-s", "3").calibration_limit_s == 3


@pytest.mark.parametrize("order", ["full,warp", "spec_pc", "full,spec_pc,spec_pc", ""])
def test_an_order_that_cannot_be_is_refused(read, order):
    with pytest.raises(InvalidRequest, match="route_order"):
        read("--route-order", order).defaults()


@pytest.mark.parametrize("flags", [("--kv-kernel", "6"), ("--kv-capacity", "32")])
def test_a_policy_that_cannot_hold_is_refused(read, flags):
    with pytest.raises(InvalidRequest):
        read(*flags).defaults()


@pytest.mark.parametrize("flags", [("--kv-lookahead-tokens", "257"), ("--kv-kernel", "1027"), ("--turn-memory", "-1")])
def test_a_value_out_of_range_is_refused(read, flags):
    with pytest.raises((ValidationError, SystemExit)):
        read(*flags)


def test_the_quality_guard(read):
    assert (read().guard_share, read().guard_max_new_tokens, read().thresholds()) == (0.01, 64, Thresholds())
    flags = ("--guard-share", "0", "--no-guard-switches", "--guard-window", "30", "--guard-off-below", "0.2")
    settings = read(*flags, "--guard-on-above", "0.3", "--guard-least-samples", "5", "--guard-max-new-tokens", "8")
    assert settings.thresholds() == Thresholds(0.2, 0.3, 5, 30, acts=False)
    assert (settings.guard_share, settings.guard_max_new_tokens) == (0.0, 8)
    with pytest.raises(InvalidRequest, match="guard_off_below"):
        read("--guard-off-below", "0.9").thresholds()
    with pytest.raises((ValidationError, SystemExit)):
        read("--guard-share", "1.5")


def test_a_coverage_makes_capacities_adapt(read):
    assert read().defaults().auto_capacity is None
    assert read("--auto-coverage", "0.9").defaults().auto_capacity == AutoCapacity(0.9)
    for bad in ("0", "1.1"):
        with pytest.raises((ValidationError, SystemExit)):
            read("--auto-coverage", bad)
