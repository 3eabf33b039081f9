"""Between the shared messages and core, both ways."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask, TokenMask
from presift.core.plan import ModelInfo, Route
from presift.core.policies import Adaptive, KvSelection, Pool, Reduction, SpecKv, SpecKvPc, SpecPc
from presift.core.spans import Span
from presift.rpc import codec
from presift.v1 import plan_pb2, target_pb2

COUNT = st.integers(1, 2**31)
COVERAGE = st.floats(0, 1, width=32, exclude_min=True)


def _adaptive(least, most, place):
    """None, or one between the bounds."""
    return place and Adaptive(place[0], min(least + place[1], most), place[2])


PLACE = st.none() | st.tuples(COVERAGE, st.integers(0, 2**20), COUNT)
SPEC_PC = st.builds(
    lambda window, more, place, **rest: SpecPc(
        capacity=window + more, window=window, adaptive=_adaptive(window, window + more, place), **rest
    ),
    window=st.integers(1, 2**20),
    more=st.integers(0, 2**20),
    place=PLACE,
    pool=st.sampled_from(Pool),
    kernel=COUNT,
    neighbors=st.integers(0, 2**31),
    reduction=st.sampled_from(Reduction),
    start_layer=st.integers(0, 2**31),
    weighted_query=st.booleans(),
    lookahead_tokens=COUNT,
)


def _spec_kv(window, more, half, mask, place, **rest):
    """Its mask as it comes off the wire, where the mask's own capacity, window and adaptive are not read."""
    if mask is not None:
        mask = replace(mask, capacity=window + more, window=1, adaptive=None)
    rest["adaptive"] = _adaptive(window + 1, window + more, place)
    return SpecKv(capacity=window + more, window=window, kernel=2 * half + 1, mask=mask, **rest)


SPEC_KV = st.builds(
    _spec_kv,
    window=st.integers(1, 2**20),
    more=st.integers(1, 2**20),
    place=PLACE,
    half=st.integers(0, 100),
    pool=st.sampled_from(Pool),
    reduction=st.sampled_from(Reduction),
    lookahead_tokens=st.integers(0, 2**31),
    mask=st.none() | SPEC_PC,
    selection=st.sampled_from(KvSelection),
)


@st.composite
def _kv_plans(draw):
    policy = replace(draw(SPEC_KV), adaptive=None)
    masked = policy.selection is KvSelection.DRAFT_MASK
    shape = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))
    ids = st.lists(st.integers(0, 2**32 - 1), max_size=min(8, policy.lookahead_tokens))
    starts = draw(st.lists(st.integers(0, 2**31), max_size=3))
    return KvPlan(
        policy,
        protected=tuple(Span(start, start + draw(st.integers(1, 2**31 - 1))) for start in starts),
        lookahead_token_ids=() if masked else tuple(draw(ids)),
        kv_mask=KvMask(draw(st_numpy.arrays(np.bool_, shape))) if masked else None,
        keep_full_prefix=draw(st.booleans()),
        prompt_tokens=draw(st.integers(0, 2**32 - 1)),
        report_kept=draw(st.booleans()),
    )


CASCADE_KV = SPEC_KV.map(lambda policy: replace(policy, selection=KvSelection.TARGET_LOOKAHEAD))
POLICY = SPEC_PC | SPEC_KV | st.builds(SpecKvPc, SPEC_PC, CASCADE_KV)


def over_the_wire(message):
    return type(message).FromString(message.SerializeToString())


@given(policy=POLICY)
def test_policies(policy):
    assert codec.policy_from_wire(over_the_wire(codec.policy_to_wire(policy))) == policy


@given(policy=SPEC_KV)
def test_a_spec_kv_by_itself(policy):
    message = over_the_wire(codec.spec_kv_to_wire(policy))
    assert codec.spec_kv_from_wire(message) == policy
    assert message == codec.policy_to_wire(policy).spec_kv
    assert message.HasField("mask") == (policy.mask is not None)


@given(policy=SPEC_KV, mask=SPEC_PC, capacity=st.integers(0, 2**32 - 1), window=st.integers(0, 2**32 - 1))
def test_a_masks_own_capacity_and_window_are_not_read(policy, mask, capacity, window):
    message = codec.spec_kv_to_wire(replace(policy, mask=mask))
    written = plan_pb2.SpecKv.FromString(message.SerializeToString())
    written.mask.capacity, written.mask.window = capacity, window
    read = codec.spec_kv_from_wire(over_the_wire(written))
    assert read == codec.spec_kv_from_wire(message)  # so that a cache knows them for the same
    assert read.draft_policy == replace(
        mask, capacity=policy.capacity + 1, window=policy.window + 1, adaptive=policy.draft_policy.adaptive
    )


def test_unset_fields_take_the_defaults_and_zero_is_no_default():
    bare = plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=64))
    assert codec.policy_from_wire(over_the_wire(bare)) == SpecPc(64)
    zeros = plan_pb2.SpecPc(capacity=64, neighbors=0, start_layer=0, weighted_query=False)
    assert codec.policy_from_wire(over_the_wire(plan_pb2.Policy(spec_pc=zeros))) == SpecPc(
        64, neighbors=0, start_layer=0, weighted_query=False
    )
    bare_kv = plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(capacity=64))
    assert codec.policy_from_wire(over_the_wire(bare_kv)) == SpecKv(64)
    bare_step = plan_pb2.SpecKv(capacity=64, adaptive=plan_pb2.Adaptive(coverage=0.5, min_capacity=40))
    assert codec.spec_kv_from_wire(bare_step).adaptive == Adaptive(0.5, 40, step=1)
    bare_mask = plan_pb2.SpecKv(capacity=64, mask=plan_pb2.SpecPc(neighbors=0))
    assert codec.spec_kv_from_wire(over_the_wire(bare_mask)).draft_policy == SpecPc(65, window=33, neighbors=0)


BAD_POLICIES = {
    "unset": plan_pb2.Policy(),
    "no capacity": plan_pb2.Policy(spec_pc=plan_pb2.SpecPc()),
    "capacity below window": plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=4, window=8)),
    "window 0": plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=4, window=0)),
    "unknown pool": plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=64, pool=9)),
    "unknown selection": plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(capacity=64, selection=9)),
    "even kernel": plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(capacity=64, kernel=4)),
    "window of a mask's owner": plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(window=0, capacity=64, mask=plan_pb2.SpecPc())),
    "no capacity, a mask": plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(mask=plan_pb2.SpecPc(capacity=64))),
    "kernel of a mask": plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(capacity=64, mask=plan_pb2.SpecPc(kernel=0))),
    "pool of a mask": plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(capacity=64, mask=plan_pb2.SpecPc(pool=9))),
    "a mask in a cascade": plan_pb2.Policy(
        spec_kv_pc=plan_pb2.SpecKvPc(
            prompt=plan_pb2.SpecPc(capacity=256),
            kv=plan_pb2.SpecKv(capacity=64, selection=plan_pb2.KV_SELECTION_DRAFT_MASK),
        )
    ),
    "adaptive, no coverage": plan_pb2.Policy(
        spec_pc=plan_pb2.SpecPc(capacity=64, adaptive=plan_pb2.Adaptive(min_capacity=40))
    ),
    "adaptive, no least": plan_pb2.Policy(
        spec_pc=plan_pb2.SpecPc(capacity=64, adaptive=plan_pb2.Adaptive(coverage=0.5))
    ),
    "adaptive, step 0": plan_pb2.Policy(
        spec_kv=plan_pb2.SpecKv(capacity=64, adaptive=plan_pb2.Adaptive(coverage=0.5, min_capacity=40, step=0))
    ),
    "half a cascade": plan_pb2.Policy(spec_kv_pc=plan_pb2.SpecKvPc(prompt=plan_pb2.SpecPc(capacity=64))),
}


@pytest.mark.parametrize("policy", BAD_POLICIES.values(), ids=BAD_POLICIES)
def test_bad_policies_are_refused(policy):
    with pytest.raises(InvalidRequest):
        codec.policy_from_wire(over_the_wire(policy))


@given(kept=st_numpy.arrays(np.bool_, st.integers(1, 70)))
def test_token_masks(kept):
    message = over_the_wire(codec.token_mask_to_wire(TokenMask(kept)))
    assert codec.token_mask_from_wire(message) == TokenMask(kept)
    for token, is_kept in enumerate(kept):  # as the contract says it
        assert bool(message.kept[token // 8] >> (token % 8) & 1) == bool(is_kept)


@given(kept=st_numpy.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))))
def test_kv_masks(kept):
    message = over_the_wire(codec.kv_mask_to_wire(KvMask(kept)))
    assert (message.layers, message.kv_heads, message.prompt_tokens) == kept.shape
    assert codec.kv_mask_from_wire(message) == KvMask(kept)


@given(prompt_tokens=st.integers(0, 40), bits=st.binary(max_size=8))
def test_token_masks_of_a_peer(prompt_tokens, bits):
    message = plan_pb2.TokenMask(prompt_tokens=prompt_tokens, kept=bits)
    try:
        mask = codec.token_mask_from_wire(message)
    except InvalidRequest:
        return
    assert mask.prompt_tokens == prompt_tokens and codec.token_mask_to_wire(mask) == message


@given(shape=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 20)), bits=st.binary(max_size=20))
def test_kv_masks_of_a_peer(shape, bits):
    layers, kv_heads, prompt_tokens = shape
    message = plan_pb2.KvMask(layers=layers, kv_heads=kv_heads, prompt_tokens=prompt_tokens, kept=bits)
    try:
        mask = codec.kv_mask_from_wire(message)
    except InvalidRequest:
        return
    assert mask.kept.shape == shape and codec.kv_mask_to_wire(mask) == message


def test_a_mask_that_claims_to_be_huge_is_refused_before_it_is_made():
    with pytest.raises(InvalidRequest):
        codec.kv_mask_from_wire(
            plan_pb2.KvMask(layers=2**32 - 1, kv_heads=2**32 - 1, prompt_tokens=2**32 - 1, kept=b"x")
        )
    with pytest.raises(InvalidRequest):
        codec.token_mask_from_wire(plan_pb2.TokenMask(prompt_tokens=2**32 - 1, kept=b"x"))


@given(pairs=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), max_size=5))
def test_spans(pairs):
    spans = tuple(Span(start, start + length) for start, length in pairs)
    assert codec.spans_from_wire(codec.spans_to_wire(spans)) == spans


@pytest.mark.parametrize(("start", "end"), [(0, 0), (5, 5), (6, 5)])
def test_empty_and_reversed_spans_are_refused(start, end):
    with pytest.raises(InvalidRequest):
        codec.spans_from_wire([plan_pb2.Span(start=start, end=end)])


@given(ids=st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_token_ids(ids):
    array = codec.token_ids_from_wire(ids)
    assert array.dtype == np.uint32 and array.tolist() == ids


@given(plan=_kv_plans())
def test_kv_plans(plan):
    assert codec.kv_plan_from_wire(over_the_wire(codec.kv_plan_to_wire(plan))) == plan


def test_a_bare_kv_plan_keeps_the_full_prefix_and_covers_all():
    bare = target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64))
    assert codec.kv_plan_from_wire(over_the_wire(bare)) == KvPlan(SpecKv(64))
    off = target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64), keep_full_prefix=False)
    assert codec.kv_plan_from_wire(over_the_wire(off)) == KvPlan(SpecKv(64), keep_full_prefix=False)


_MASKED = plan_pb2.SpecKv(capacity=64, selection=plan_pb2.KV_SELECTION_DRAFT_MASK)
_MASK = plan_pb2.KvMask(layers=1, kv_heads=1, prompt_tokens=9, kept=b"\x01\x01")
BAD_PLANS = {
    "empty": (target_pb2.KvPlan(), "spec_kv.capacity"),
    "capacity within the window": (target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=32)), "spec_kv.capacity"),
    "even kernel": (target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64, kernel=4)), "spec_kv.kernel"),
    "wide kernel": (target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64, kernel=1027)), "spec_kv.kernel"),
    "unknown selection": (target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64, selection=9)), "policy.selection"),
    "no mask": (target_pb2.KvPlan(policy=_MASKED), "kv_plan.kv_mask"),
    "a mask": (target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64), kv_mask=_MASK), "kv_plan.kv_mask"),
    "half a mask": (
        target_pb2.KvPlan(policy=_MASKED, kv_mask=plan_pb2.KvMask(layers=1, kv_heads=1, prompt_tokens=9, kept=b"x")),
        "kv_mask.kept",
    ),
    "an empty mask": (target_pb2.KvPlan(policy=_MASKED, kv_mask=plan_pb2.KvMask()), "kv_mask"),
    "too long a lookahead": (
        target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64, lookahead_tokens=1), lookahead_token_ids=[1, 2]),
        "kv_plan.lookahead_token_ids",
    ),
    "an empty span": (
        target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=64), protected_spans=[plan_pb2.Span(start=3, end=3)]),
        "protected_spans",
    ),
}


@pytest.mark.parametrize(("plan", "field"), BAD_PLANS.values(), ids=BAD_PLANS)
def test_bad_kv_plans_are_refused(plan, field):
    with pytest.raises(InvalidRequest) as refusal:
        codec.kv_plan_from_wire(over_the_wire(plan))
    assert refusal.value.field == field


def test_a_kv_plans_message_has_no_field_that_is_not_carried():
    renamed = {"protected_spans": "protected"}
    carried = {renamed.get(field.name, field.name) for field in target_pb2.KvPlan.DESCRIPTOR.fields}
    assert carried == set(KvPlan.__dataclass_fields__)


@given(model=st.builds(ModelInfo, st.text(), st.text(), st.text(), *[st.integers(0, 2**32 - 1) for _ in range(4)]))
def test_models(model):
    assert codec.model_from_wire(over_the_wire(codec.model_to_wire(model))) == model


def test_the_message_has_no_field_that_the_value_lacks():
    assert {field.name for field in plan_pb2.ModelInfo.DESCRIPTOR.fields} == set(ModelInfo.__dataclass_fields__)
    for message, kind in ((plan_pb2.SpecPc, SpecPc), (plan_pb2.SpecKv, SpecKv)):
        assert {field.name for field in message.DESCRIPTOR.fields} == {field.name for field in fields(kind)}


@pytest.mark.parametrize("route", Route)
def test_routes(route):
    assert codec.route_from_wire(codec.route_to_wire(route)) is route


def test_every_route_of_the_contract_has_a_meaning():
    known = {codec.route_to_wire(route) for route in Route} | {plan_pb2.ROUTE_UNSPECIFIED, plan_pb2.ROUTE_AUTO}
    assert known == set(plan_pb2.Route.values())
    assert codec.route_from_wire(plan_pb2.ROUTE_UNSPECIFIED) is codec.route_from_wire(plan_pb2.ROUTE_AUTO) is None


@pytest.mark.parametrize("number", [-1, 6, 2**31 - 1])
def test_unknown_routes_are_refused(number):
    with pytest.raises(InvalidRequest, match=str(number)):
        codec.route_from_wire(number)
