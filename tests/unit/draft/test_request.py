"""Requests that cannot be served are refused before they wait for the model: with field, value and limit."""

from dataclasses import replace

import pytest

from presift.core.errors import BudgetExceeded, InvalidRequest, PromptTooLong, RouteUnsupported
from presift.core.plan import ModelInfo
from presift.core.policies import SpecPc
from presift.core.spans import Span
from presift.draft.demand import Mask
from presift.draft.request import MAX_WIDTH_TOKENS, RequestLimits, parse
from presift.v1 import draft_pb2, plan_pb2

ADAPTIVE = {"coverage": 0.5, "min_capacity": 10}
LIMITS = RequestLimits(ModelInfo("m", "r", "", context_tokens=100, layers=4, kv_heads=2, vocabulary_size=512), 16)


def message(ids=range(50), spans=(), lookahead=0, **policy):
    values = {"capacity": 20, "window": 8, "start_layer": 0} | policy
    return _message(plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(**values)), ids, spans, lookahead)


def kv_message(ids=range(50), spans=(), lookahead=0, importance=False, mask=None, **policy):
    """A spec_kv of capacity 20 and window 8: with the final token the draft keeps 21, of which 9 are the window."""
    values = {"capacity": 20, "window": 8, "lookahead_tokens": 4} | policy
    spec_kv = plan_pb2.SpecKv(mask=plan_pb2.SpecPc(**({"start_layer": 0} | (mask or {}))), **values)
    return _message(plan_pb2.Policy(spec_kv=spec_kv), ids, spans, lookahead, importance)


def mask_message(**options):
    return kv_message(selection=plan_pb2.KV_SELECTION_DRAFT_MASK, **options)


def cascade_message(ids=range(50), spans=(), lookahead=0, kv=None, **prompt):
    prompt = plan_pb2.SpecPc(**({"capacity": 20, "window": 8, "start_layer": 0} | prompt))
    kv = plan_pb2.SpecKv(**({"capacity": 10, "window": 2, "lookahead_tokens": 4} | (kv or {})))
    return _message(plan_pb2.Policy(spec_kv_pc=plan_pb2.SpecKvPc(prompt=prompt, kv=kv)), ids, spans, lookahead)


def _message(policy, ids, spans, lookahead, importance=False):
    return draft_pb2.ScoreRequest(
        token_ids=ids,
        policy=policy,
        protected_spans=[plan_pb2.Span(start=start, end=end) for start, end in spans],
        lookahead_tokens=lookahead,
        include_importance=importance,
    )


def test_a_good_request_is_translated():
    request = parse(message(spans=[(0, 4)], lookahead=3, kernel=5), LIMITS)
    assert request.token_ids.tolist() == list(range(50))
    assert request.demand.scoring == SpecPc(capacity=20, window=8, start_layer=0, kernel=5)
    assert request.demand.mask is Mask.TOKEN
    assert request.protected == (Span(0, 4),)
    assert request.task.policy == request.demand.scoring
    assert request.task.lookahead_tokens == 3


def test_a_prompt_that_fits_the_capacity_is_not_scored():
    assert parse(message(ids=range(20)), LIMITS).task.policy is None
    assert parse(message(ids=range(5)), LIMITS).task.policy is None
    assert parse(message(ids=range(21)), LIMITS).task.policy is not None


@pytest.mark.parametrize(
    ("bad", "kind", "field"),
    [
        (message(ids=[]), InvalidRequest, "token_ids"),
        (message(ids=[1, 512]), InvalidRequest, "token_ids"),
        (message(ids=[4_294_967_295]), InvalidRequest, "token_ids"),
        (message(ids=[1] * 101), PromptTooLong, "token_ids"),
        (message(ids=[1] * 98, lookahead=3), PromptTooLong, "token_ids"),
        (message(ids=[1] * 98, lookahead_tokens=4), PromptTooLong, "token_ids"),
        (message(lookahead=17), InvalidRequest, "lookahead_tokens"),
        (message(lookahead_tokens=18), InvalidRequest, "spec_pc.lookahead_tokens"),
        (message(lookahead_tokens=0), InvalidRequest, "spec_pc.lookahead_tokens"),
        (message(start_layer=4), InvalidRequest, "spec_pc.start_layer"),
        (message(capacity=7), InvalidRequest, "spec_pc.capacity"),
        (message(capacity=0), InvalidRequest, "spec_pc.capacity"),
        (message(window=0), InvalidRequest, "spec_pc.window"),
        (message(kernel=0), InvalidRequest, "spec_pc.kernel"),
        (message(kernel=MAX_WIDTH_TOKENS + 1), InvalidRequest, "spec_pc.kernel"),
        (message(neighbors=4_294_967_295), InvalidRequest, "spec_pc.neighbors"),
        (message(spans=[(3, 3)]), InvalidRequest, "protected_spans"),
        (message(spans=[(9, 3)]), InvalidRequest, "protected_spans"),
        (message(spans=[(49, 51)]), InvalidRequest, "protected_spans"),
        (message(spans=[(0, 13)]), BudgetExceeded, "protected_spans"),
        (draft_pb2.ScoreRequest(token_ids=[1]), InvalidRequest, "policy"),
        # spec_kv: what the target chooses
        (kv_message(lookahead=17), InvalidRequest, "lookahead_tokens"),
        (kv_message(lookahead_tokens=17), InvalidRequest, "spec_kv.lookahead_tokens"),
        (kv_message(capacity=8), InvalidRequest, "spec_kv.capacity"),
        (kv_message(kernel=4), InvalidRequest, "spec_kv.kernel"),
        (kv_message(ids=[1] * 97), PromptTooLong, "token_ids"),
        (kv_message(spans=[(0, 13)]), BudgetExceeded, "protected_spans"),
        (kv_message(spans=[(49, 51)]), InvalidRequest, "protected_spans"),
        (kv_message(ids=range(10), spans=[(9, 11)]), InvalidRequest, "protected_spans"),
        (kv_message(importance=True, mask={"start_layer": 4}), InvalidRequest, "spec_pc.start_layer"),
        (kv_message(importance=True, mask={"lookahead_tokens": 18}), InvalidRequest, "spec_pc.lookahead_tokens"),
        # spec_kv: what the draft's mask chooses
        (mask_message(lookahead=17), InvalidRequest, "lookahead_tokens"),
        (mask_message(mask={"start_layer": 4}), InvalidRequest, "spec_pc.start_layer"),
        (mask_message(mask={"kernel": MAX_WIDTH_TOKENS + 1}), InvalidRequest, "spec_pc.kernel"),
        (mask_message(mask={"kernel": 0}), InvalidRequest, "spec_pc.kernel"),
        (mask_message(mask={"neighbors": MAX_WIDTH_TOKENS + 1}), InvalidRequest, "spec_pc.neighbors"),
        (mask_message(mask={"lookahead_tokens": 18}), InvalidRequest, "spec_pc.lookahead_tokens"),
        (mask_message(ids=[1] * 98, mask={"lookahead_tokens": 4}), PromptTooLong, "token_ids"),
        (mask_message(spans=[(0, 13)]), BudgetExceeded, "protected_spans"),
        # what adapts
        (message(adaptive=ADAPTIVE | {"min_capacity": 7}), InvalidRequest, "spec_pc.adaptive.min_capacity"),
        (message(adaptive=ADAPTIVE | {"coverage": 0.0}), InvalidRequest, "adaptive.coverage"),
        (kv_message(adaptive=ADAPTIVE, mask={"start_layer": 4}), InvalidRequest, "spec_pc.start_layer"),
        (kv_message(adaptive=ADAPTIVE | {"min_capacity": 8}), InvalidRequest, "spec_kv.adaptive.min_capacity"),
        (cascade_message(kv={"capacity": 10, "adaptive": ADAPTIVE}, spans=[(0, 9)]), BudgetExceeded, "protected_spans"),
        # spec_kv_pc
        (cascade_message(kv={"lookahead_tokens": 17}), InvalidRequest, "spec_kv.lookahead_tokens"),
        (cascade_message(kv={"kernel": 4}), InvalidRequest, "spec_kv.kernel"),
        (cascade_message(start_layer=4), InvalidRequest, "spec_pc.start_layer"),
        (cascade_message(kernel=MAX_WIDTH_TOKENS + 1), InvalidRequest, "spec_pc.kernel"),
        (cascade_message(neighbors=MAX_WIDTH_TOKENS + 1), InvalidRequest, "spec_pc.neighbors"),
        (cascade_message(lookahead_tokens=18), InvalidRequest, "spec_pc.lookahead_tokens"),
        (cascade_message(ids=[1] * 97), PromptTooLong, "token_ids"),
        (cascade_message(spans=[(0, 13)]), BudgetExceeded, "protected_spans"),
        (
            cascade_message(kv={"selection": plan_pb2.KV_SELECTION_DRAFT_MASK}),
            InvalidRequest,
            "spec_kv_pc.kv.selection",
        ),
    ],
)
def test_bad_requests_name_what_is_wrong(bad, kind, field):
    with pytest.raises(kind) as refusal:
        parse(bad, LIMITS)
    assert type(refusal.value) is kind
    assert refusal.value.field == field
    assert set(refusal.value.details) == {"field", "value", "limit"}


def test_the_edges_are_served():
    parse(message(ids=[511] * 100, lookahead_tokens=1), LIMITS)
    parse(message(ids=[1] * 84, lookahead=16, lookahead_tokens=17), LIMITS)
    parse(message(spans=[(0, 12), (45, 50)]), LIMITS)  # 12 + the window's 8 = 20
    parse(message(ids=range(10), spans=[(0, 10)], capacity=12), LIMITS)


def test_the_edges_of_spec_kv_are_served():
    parse(kv_message(ids=[1] * 96), LIMITS)
    parse(kv_message(lookahead=16, lookahead_tokens=16), LIMITS)
    for message in (kv_message, mask_message):
        parse(message(spans=[(0, 12), (41, 50)]), LIMITS)  # 12 + the window's 8 = 20, and the final token
        parse(message(spans=[(0, 12), (49, 50)]), LIMITS)
        parse(message(ids=range(21), spans=[(0, 21)]), LIMITS)
        parse(message(ids=[1]), LIMITS)


def test_the_edges_of_spec_kv_pc_are_served():
    parse(cascade_message(ids=[1] * 84, kv={"lookahead_tokens": 16}, lookahead_tokens=17), LIMITS)
    # Beyond the KV capacity, of which the target knows what it still holds.
    parse(cascade_message(spans=[(0, 12)], kv={"capacity": 3}), LIMITS)
    parse(cascade_message(ids=range(20), spans=[(0, 20)]), LIMITS)


@pytest.mark.parametrize("message", [kv_message, mask_message])
def test_the_capacity_that_is_exceeded_is_named_as_the_caller_knows_it(message):
    with pytest.raises(BudgetExceeded) as refusal:
        parse(message(spans=[(0, 13), (45, 50)]), LIMITS)
    assert refusal.value.details["value"] == "21"  # 13 and the window's 8
    assert "<= capacity (20) tokens" in refusal.value.details["limit"]


def test_what_is_not_used_is_not_held_against_limits():
    """The defaults of a mask that nobody draws would refuse every draft of 8 layers or fewer."""
    wide = {"start_layer": 4, "kernel": MAX_WIDTH_TOKENS + 1, "neighbors": MAX_WIDTH_TOKENS + 1, "lookahead_tokens": 99}
    assert parse(kv_message(mask=wide), LIMITS).task.policy is None
    assert parse(mask_message(lookahead_tokens=99), LIMITS).task.lookahead_tokens == 0


@pytest.mark.parametrize(("asked", "generated"), [(0, 4), (3, 4), (4, 4), (5, 5)])
def test_the_larger_lookahead_counts(asked, generated):
    for message in (kv_message, cascade_message):
        assert parse(message(lookahead=asked), LIMITS).task.lookahead_tokens == generated
    assert parse(mask_message(lookahead=asked), LIMITS).task.lookahead_tokens == asked


def test_spec_kv_is_scored_only_for_a_mask_or_to_be_seen():
    long, fits = range(22), range(21)
    drawn = SpecPc(capacity=21, window=9, start_layer=0)
    assert parse(kv_message(ids=long), LIMITS).task.policy is None
    assert parse(kv_message(ids=long, importance=True), LIMITS).task.policy == drawn
    assert parse(mask_message(ids=long), LIMITS).task.policy == drawn
    assert parse(kv_message(ids=fits, importance=True), LIMITS).task.policy is None
    assert parse(mask_message(ids=fits), LIMITS).task.policy is None


TRUNCATED = RequestLimits(replace(LIMITS.model, all_layers=6, head_profile="abc"), 16)
CALIBRATED = {"heads": plan_pb2.SCORED_HEADS_CALIBRATED}


@pytest.mark.parametrize(
    ("asked", "value"),
    [(message(lookahead=3), "3"), (message(lookahead_tokens=5), "4"), (kv_message(), "4"), (cascade_message(), "4")],
)
def test_a_lookahead_from_a_draft_without_its_last_layers_is_refused(asked, value):
    with pytest.raises(RouteUnsupported, match="only 4 of 6 layers loaded") as refusal:
        parse(asked, TRUNCATED)
    assert refusal.value.details["field"] == "lookahead_tokens" and refusal.value.details["value"] == value


def test_a_draft_without_its_last_layers_scores():
    assert parse(message(**CALIBRATED), TRUNCATED).task.policy is not None
    parse(mask_message(lookahead_tokens=0), TRUNCATED)


def test_calibrated_heads_need_a_head_profile_and_no_start_layer():
    with pytest.raises(RouteUnsupported, match="no head profile"):
        parse(message(**CALIBRATED), LIMITS)
    parse(message(start_layer=99, **CALIBRATED), TRUNCATED)


def test_the_salt_reaches_the_scorer():
    asked = message()
    asked.cache_salt = "tenant"
    assert parse(asked, LIMITS).task.salt == "tenant"
