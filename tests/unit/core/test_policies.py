from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest
from presift.core.policies import POLICIES, Adaptive, Heads, KvSelection, Pool, Reduction, SpecKv, SpecKvPc, SpecPc

VALID = {
    "spec_pc": SpecPc(capacity=256),
    "spec_kv": SpecKv(capacity=256),
    "spec_kv_pc": SpecKvPc(SpecPc(capacity=2048), SpecKv(capacity=256)),
}
# policy, field, bad value, limit: what must be refused, just outside each limit.
BAD = [
    ("spec_pc", "capacity", 0, ">= 1"),
    ("spec_pc", "capacity", 31, ">= window (32)"),
    ("spec_pc", "capacity", None, ">= 1"),
    ("spec_pc", "window", 0, ">= 1"),
    ("spec_pc", "kernel", 0, ">= 1"),
    ("spec_pc", "kernel", 2.5, ">= 1"),
    ("spec_pc", "neighbors", -1, ">= 0"),
    ("spec_pc", "start_layer", -1, ">= 0"),
    ("spec_pc", "lookahead_tokens", 0, ">= 1"),
    ("spec_pc", "pool", "median", "one of none, max, mean"),
    ("spec_pc", "reduction", "mean", "one of max, sum"),
    ("spec_pc", "heads", "best", "one of all, calibrated"),
    ("spec_kv", "capacity", 0, ">= 1"),
    ("spec_kv", "capacity", 32, "> window (32)"),
    ("spec_kv", "capacity", None, ">= 1"),
    ("spec_kv", "window", 0, ">= 1"),
    ("spec_kv", "kernel", 0, ">= 1"),
    ("spec_kv", "kernel", 8, "odd"),
    ("spec_kv", "lookahead_tokens", -1, ">= 0"),
    ("spec_kv", "renew_every", -1, ">= 0"),
    ("spec_kv", "renew_window", 0, ">= 1"),
    ("spec_kv", "first_full_tokens", -1, ">= 0"),
    ("spec_kv", "pool", "median", "one of none, max, mean"),
    ("spec_kv", "reduction", "mean", "one of max, sum"),
    ("spec_kv", "selection", "nobody", "one of target_lookahead, draft_mask"),
]
# The least that each field may be, and the members of each kind.
EDGES = [
    ("spec_pc", "capacity", 32),
    ("spec_pc", "window", 1),
    ("spec_pc", "window", 256),
    ("spec_pc", "kernel", 1),
    ("spec_pc", "neighbors", 0),
    ("spec_pc", "start_layer", 0),
    ("spec_pc", "lookahead_tokens", 1),
    ("spec_kv", "capacity", 33),
    ("spec_kv", "window", 1),
    ("spec_kv", "window", 255),
    ("spec_kv", "kernel", 1),
    ("spec_kv", "lookahead_tokens", 0),
    *(("spec_kv", "selection", member) for member in KvSelection),
    *(("spec_pc", "heads", member) for member in Heads),
    *((name, "pool", member) for name in ("spec_pc", "spec_kv") for member in Pool),
    *((name, "reduction", member) for name in ("spec_pc", "spec_kv") for member in Reduction),
]


def test_the_matrix_knows_every_policy_and_every_field_that_has_a_limit():
    assert VALID.keys() == POLICIES.keys()
    for name in ("spec_pc", "spec_kv"):
        refused = {field for policy, field, *_ in BAD if policy == name}
        # Either value of a flag is good; a mask is a policy of its own and refuses by itself, as does what adapts.
        assert {field.name for field in fields(POLICIES[name])} - refused <= {"weighted_query", "mask", "adaptive"}


@pytest.mark.parametrize("name", POLICIES)
def test_a_valid_policy_is_a_frozen_value(name):
    policy = VALID[name]
    assert type(policy) is POLICIES[name]
    assert policy == replace(policy)
    assert hash(policy) == hash(replace(policy))
    with pytest.raises(FrozenInstanceError):
        setattr(policy, fields(policy)[0].name, fields(policy)[0].default)


@pytest.mark.parametrize(("name", "field", "value", "limit"), BAD)
def test_a_bad_field_is_refused_by_name_value_and_limit(name, field, value, limit):
    with pytest.raises(InvalidRequest) as refusal:
        replace(VALID[name], **{field: value})
    assert refusal.value.details == {"field": f"{name}.{field}", "value": str(value), "limit": limit}


@pytest.mark.parametrize(("name", "field", "value"), EDGES)
def test_the_edge_of_each_limit_is_valid(name, field, value):
    assert getattr(replace(VALID[name], **{field: value}), field) == value


@given(st.integers(1, 300), st.integers(1, 300))
def test_spec_pc_needs_room_for_its_window_and_spec_kv_for_one_key_more(capacity, window):
    for kind, fits in ((SpecPc, capacity >= window), (SpecKv, capacity > window)):
        if fits:
            assert kind(capacity=capacity, window=window).capacity == capacity
        else:
            with pytest.raises(InvalidRequest, match="capacity"):
                kind(capacity=capacity, window=window)


def test_a_cascade_names_the_stage_that_is_wrong():
    with pytest.raises(InvalidRequest) as refusal:
        SpecKvPc(SpecPc(capacity=2048), SpecKv(capacity=256, kernel=4))
    assert refusal.value.field == "spec_kv.kernel"


def test_a_cascade_lets_the_targets_own_queries_choose():
    with pytest.raises(InvalidRequest) as refusal:
        SpecKvPc(SpecPc(capacity=2048), SpecKv(capacity=256, selection=KvSelection.DRAFT_MASK))
    assert refusal.value.details == {
        "field": "spec_kv_pc.kv.selection",
        "value": "draft_mask",
        "limit": "target_lookahead",
    }


@pytest.mark.parametrize("capacity", [33, 34, 256])
def test_the_draft_selects_the_final_token_on_top_of_capacity_and_window(capacity):
    assert SpecKv(capacity).draft_policy == SpecPc(capacity=capacity + 1, window=33)
    assert SpecKv(capacity, window=1).draft_policy == SpecPc(capacity=capacity + 1, window=2)


@pytest.mark.parametrize(("capacity", "window"), [(1, 1), (64, 64), (4096, 2)])
def test_the_draft_selects_as_the_mask_says_but_for_capacity_and_window(capacity, window):
    fine = {"pool": Pool.MEAN, "kernel": 5, "neighbors": 3, "start_layer": 1, "lookahead_tokens": 9}
    mask = SpecPc(capacity, window, reduction=Reduction.SUM, weighted_query=False, **fine)
    assert SpecKv(40, window=8, mask=mask).draft_policy == replace(mask, capacity=41, window=9)


def test_the_targets_pooling_is_not_the_drafts():
    theirs = SpecKv(256, pool=Pool.MEAN, kernel=3, reduction=Reduction.SUM, lookahead_tokens=5)
    assert theirs.draft_policy == SpecKv(256).draft_policy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("coverage", value) for value in (0.0, -0.1, 1.1, 1e-60, float("nan"), float("inf"))),
        *(("min_capacity", value) for value in (0, -1, 1.5)),
        *(("step", value) for value in (0, -1, None)),
    ],
)
def test_a_capacity_that_cannot_adapt_is_refused(field, value):
    with pytest.raises(InvalidRequest) as refusal:
        replace(Adaptive(0.9, 64), **{field: value})
    assert refusal.value.field == f"adaptive.{field}"


@pytest.mark.parametrize(("name", "least"), [("spec_pc", 32), ("spec_kv", 33)])
def test_what_adapts_lies_between_window_and_capacity(name, least):
    for good in (least, 100, 256):
        assert replace(VALID[name], adaptive=Adaptive(0.9, good)).adaptive.min_capacity == good
    for bad in (least - 1, 257):
        with pytest.raises(InvalidRequest) as refusal:
            replace(VALID[name], adaptive=Adaptive(0.9, bad))
        assert refusal.value.details["field"] == f"{name}.adaptive.min_capacity"
        assert refusal.value.details["limit"] == f"{least}..256 (the capacity)"


def test_a_coverage_is_the_one_that_travels():
    assert Adaptive(0.9, 64).coverage == float(np.float32(0.9)) != 0.9
    assert Adaptive(Adaptive(0.9, 64).coverage, 64) == Adaptive(0.9, 64)


@pytest.mark.parametrize(
    ("needed", "size"), [(0, 10), (10, 10), (11, 14), (14, 14), (15, 18), (18, 18), (19, 20), (20, 20), (99, 20)]
)
def test_a_capacity_grows_by_steps_up_to_the_most(needed, size):
    adaptive = Adaptive(0.5, 10, 4)
    assert adaptive.size(needed, 20) == size
    assert [tokens for tokens in range(30) if adaptive.allows(tokens, 20)] == [10, 14, 18, 20]


def test_the_draft_adapts_by_the_same_steps_with_the_final_token_on_top():
    policy = SpecKv(256, window=8, adaptive=Adaptive(0.9, 64, 16), mask=SpecPc(99, adaptive=Adaptive(0.1, 50)))
    assert policy.draft_policy == SpecPc(257, window=9, adaptive=Adaptive(0.9, 65, 16))


@pytest.mark.parametrize("renews", [{"renew_every": 1}, {"first_full_tokens": 1}], ids=str)
def test_renewal_needs_room_for_its_window(renews):
    assert not SpecKv(capacity=64, renew_window=64).renews
    assert SpecKv(capacity=65, renew_window=64, **renews).renews
    with pytest.raises(InvalidRequest) as refusal:
        SpecKv(capacity=64, renew_window=64, **renews)
    assert (refusal.value.field, refusal.value.limit) == ("spec_kv.capacity", "> renew_window (64)")


@pytest.mark.parametrize(
    ("policy", "needs_draft"),
    [
        (SpecPc(256), True),
        (SpecKv(256), True),
        (SpecKv(256, lookahead_tokens=0), False),
        (SpecKv(256, lookahead_tokens=0, first_full_tokens=16, renew_every=12), False),
        (SpecKv(256, lookahead_tokens=0, adaptive=Adaptive(0.9, 64)), True),
        (SpecKv(256, lookahead_tokens=0, selection=KvSelection.DRAFT_MASK), True),
        (SpecKvPc(SpecPc(2048), SpecKv(256, lookahead_tokens=0)), True),
    ],
)
def test_who_needs_a_draft(policy, needs_draft):
    assert policy.needs_draft is needs_draft


def test_an_entry_does_not_depend_on_what_follows_it():
    renewing = SpecKv(256, renew_every=12, renew_window=9, first_full_tokens=16)
    both = SpecKvPc(SpecPc(2048), renewing)
    assert renewing.entry_policy == SpecKv(256).entry_policy == SpecKv(256)
    assert both.entry_policy == SpecKvPc(SpecPc(2048), SpecKv(256)) and SpecPc(256).entry_policy == SpecPc(256)
