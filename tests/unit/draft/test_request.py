"""Requests that cannot be served are refused before they wait for the model: with field, value and limit."""

import pytest

from presift.core.errors import BudgetExceeded, InvalidRequest, PromptTooLong, RouteUnsupported
from presift.core.plan import ModelInfo
from presift.core.policies import SpecPc
from presift.core.spans import Span
from presift.draft.request import MAX_WIDTH_TOKENS, Limits, parse
from presift.v1 import draft_pb2, plan_pb2

LIMITS = Limits(ModelInfo("m", "r", "", context_tokens=100, layers=4, kv_heads=2, vocabulary_size=512), 16)


def message(ids=range(50), spans=(), lookahead=0, **policy):
    values = {"capacity": 20, "window": 8, "start_layer": 0} | policy
    return draft_pb2.ScoreRequest(
        token_ids=ids,
        policy=plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(**values)),
        protected_spans=[plan_pb2.Span(start=start, end=end) for start, end in spans],
        lookahead_tokens=lookahead,
    )


def test_a_good_request_is_translated():
    request = parse(message(spans=[(0, 4)], lookahead=3, kernel=5), LIMITS)
    assert request.token_ids.tolist() == list(range(50))
    assert request.policy == SpecPc(capacity=20, window=8, start_layer=0, kernel=5)
    assert request.protected == (Span(0, 4),)
    assert request.task.policy == request.policy
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
        (
            draft_pb2.ScoreRequest(token_ids=[1], policy=plan_pb2.Policy(spec_kv=plan_pb2.SpecKv(capacity=99))),
            RouteUnsupported,
            "policy",
        ),
        (
            draft_pb2.ScoreRequest(
                token_ids=[1],
                policy=plan_pb2.Policy(
                    spec_kv_pc=plan_pb2.SpecKvPc(prompt=plan_pb2.SpecPc(capacity=99), kv=plan_pb2.SpecKv(capacity=50))
                ),
            ),
            RouteUnsupported,
            "policy",
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
