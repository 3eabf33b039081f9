"""What each policy asks of the draft."""

from dataclasses import replace

import pytest

from presift.core.policies import POLICIES, Adaptive, KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.draft.demand import Demand, Mask, demand_of
from presift.draft.request import SUPPORTED_ROUTES

SPEC_PC = SpecPc(capacity=64, lookahead_tokens=5)
BY_LOOKAHEAD = SpecKv(capacity=40, window=8, lookahead_tokens=7)
BY_MASK = SpecKv(capacity=40, window=8, lookahead_tokens=7, selection=KvSelection.DRAFT_MASK, mask=SPEC_PC)
FINE = SpecPc(capacity=41, window=9, lookahead_tokens=5)
ADAPTIVE = {"adaptive": Adaptive(0.9, 20, 4)}
AUTO_KV = replace(BY_LOOKAHEAD, mask=SPEC_PC, **ADAPTIVE)
AUTO_FINE = replace(FINE, adaptive=Adaptive(0.9, 21, 4))


@pytest.mark.parametrize(
    ("policy", "demand", "extra_kept_tokens"),
    [
        (SPEC_PC, Demand(SPEC_PC, Mask.TOKEN, 0), 0),
        (BY_LOOKAHEAD, Demand(SpecPc(capacity=41, window=9), Mask.NONE, 7), 1),
        (BY_MASK, Demand(FINE, Mask.KV, 0), 1),
        (SpecKvPc(SPEC_PC, BY_LOOKAHEAD), Demand(SPEC_PC, Mask.TOKEN, 7), 0),
        (AUTO_KV, Demand(AUTO_FINE, Mask.NONE, 7, AUTO_FINE), 1),
        (replace(BY_MASK, **ADAPTIVE), Demand(AUTO_FINE, Mask.KV, 0), 1),
        (SpecKvPc(SPEC_PC, AUTO_KV), Demand(SPEC_PC, Mask.TOKEN, 7, AUTO_FINE), 0),
    ],
)
def test_each_policy_is_read(policy, demand, extra_kept_tokens):
    assert demand_of(policy) == demand
    assert demand.extra_kept_tokens == extra_kept_tokens


def test_every_policy_has_a_route_that_is_served():
    assert {route.value for route in SUPPORTED_ROUTES} == POLICIES.keys()
