"""What one caller made tighter than everyone has it judges no route."""

from dataclasses import replace

import pytest

from presift.core.policies import Adaptive, SpecKv, SpecKvPc, SpecPc
from presift.orchestrator.config.overrides import EffectiveDefaults
from presift.orchestrator.domain.request import AutoCapacity, Budget
from presift.orchestrator.routing.adaptive_capacity import measured_at
from presift.orchestrator.routing.choice import Defaults

PC, KV = SpecPc(100, window=10), SpecKv(50, window=8)
DEFAULTS = Defaults(PC, 400, spec_kv=KV, cascade_capacity=200)
EVERYONES = EffectiveDefaults(DEFAULTS)


def is_tighter(policy, everyone, **pages):
    return everyone.keeps_more_than(policy, **pages)


def both(prompt, kv):
    return SpecKvPc(replace(PC, capacity=prompt), replace(KV, capacity=kv))


@pytest.mark.parametrize(
    ("policy", "tighter"),
    [
        (PC, replace(PC, capacity=99)),
        (replace(PC, capacity=300), replace(PC, capacity=64)),
        (KV, replace(KV, capacity=49)),
        (both(200, 50), both(199, 50)),
        (both(200, 50), both(200, 49)),
    ],
)
def test_fewer_tokens_than_everyones(policy, tighter):
    assert not is_tighter(policy, EVERYONES) and is_tighter(tighter, EVERYONES)


def test_a_file_that_is_everyones_counts():
    limits = EffectiveDefaults(DEFAULTS, Budget(max_prompt_tokens=80, max_kv_tokens=31))
    assert not is_tighter(replace(PC, capacity=31), limits) and is_tighter(replace(PC, capacity=30), limits)
    assert not is_tighter(both(80, 30), limits) and is_tighter(both(79, 30), limits)


def test_kv_is_kept_in_whole_pages():
    paged = replace(KV, capacity=48)
    assert is_tighter(paged, EVERYONES) and not is_tighter(paged, EVERYONES, page_tokens=16)


def test_less_coverage_than_everyones():
    auto = EffectiveDefaults(replace(DEFAULTS, auto_capacity=AutoCapacity(0.9)))
    for coverage, tighter in ((0.9, False), (0.95, False), (0.5, True)):
        assert is_tighter(replace(PC, adaptive=Adaptive(coverage, 16)), auto) is tighter
    assert is_tighter(replace(PC, adaptive=Adaptive(0.99, 16)), EVERYONES)  # nobody else's adapts
    assert not is_tighter(PC, auto)


def test_a_capacity_of_which_coverage_is_asked_is_no_tighter():
    """Whoever says `min_coverage` gets what everyone gets, or more."""
    measured = replace(KV, adaptive=measured_at(50, 1))
    cascade = replace(both(200, 50), kv=measured)
    assert not is_tighter(measured, EVERYONES) and not is_tighter(cascade, EVERYONES)
    assert is_tighter(replace(KV, capacity=49, adaptive=measured_at(49, 1)), EVERYONES)
