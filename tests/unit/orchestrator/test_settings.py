"""Settings become defaults; what cannot hold is refused at the start."""

import pytest
from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import KvSelection, Pool, Reduction, SpecKv
from presift.orchestrator.choices import ROUTE_ORDER
from presift.orchestrator.settings import OrchestratorSettings


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
