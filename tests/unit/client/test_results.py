"""From messages to plain values."""

import pytest

from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2
from presift_client import Delta, TokenLogprob, ToolCall
from presift_client.forecasts import StageSpeed
from presift_client.results import Replica, event_of, gather, info_of

DECISION = orchestrator_pb2.GenerateResponse(
    decision=orchestrator_pb2.Decision(
        route=plan_pb2.ROUTE_SPEC_PC,
        reason=orchestrator_pb2.DECISION_REASON_OVER_BUDGET,
        cache=orchestrator_pb2.CACHE_OUTCOME_HIT,
        coverage=0.5,
    )
)
USAGE = orchestrator_pb2.GenerateResponse(usage=orchestrator_pb2.Usage(finish_reason=target_pb2.FINISH_REASON_STOP))


def delta(text, *token_ids):
    return orchestrator_pb2.GenerateResponse(delta=orchestrator_pb2.TextDelta(text=text, token_ids=token_ids))


def test_names_instead_of_numbers():
    decision = event_of(DECISION)
    assert (decision.route, decision.reason, decision.cache) == ("spec_pc", "over_budget", "hit")
    assert event_of(USAGE).finish_reason == "stop"


def test_unknown_enum_values_are_numbers():
    newer = orchestrator_pb2.GenerateResponse(usage=orchestrator_pb2.Usage(finish_reason=9))
    assert event_of(newer).finish_reason == "9"
    info = info_of(orchestrator_pb2.GetInfoResponse(supported_routes=[plan_pb2.ROUTE_FULL, 77]))
    assert info.supported_routes == ("full", "77")


def test_replicas():
    sent = orchestrator_pb2.Replica(address="a:1", role="draft", healthy=True, breaker="open", in_flight=3, name="n")
    (replica,) = info_of(orchestrator_pb2.GetInfoResponse(replicas=[sent])).replicas
    assert replica == Replica("a:1", "draft", True, "open", 3, "", "n")


def test_coverage_zero_differs_from_unset():
    message = orchestrator_pb2.GenerateResponse(decision=orchestrator_pb2.Decision(coverage=0.0))
    assert event_of(message).coverage == 0.0
    assert event_of(orchestrator_pb2.GenerateResponse(decision=orchestrator_pb2.Decision())).coverage is None


def test_no_prediction_is_none():
    message = orchestrator_pb2.GenerateResponse(decision=orchestrator_pb2.Decision(predicted_ttft_ms=7.5))
    assert event_of(message).predicted_ttft_ms == 7.5 and event_of(DECISION).predicted_ttft_ms is None


SPEC_KV = plan_pb2.SpecKv(capacity=256, selection=plan_pb2.KV_SELECTION_TARGET_LOOKAHEAD)


@pytest.mark.parametrize(
    ("policy", "capacity", "selection"),
    [
        ({"spec_kv": SPEC_KV}, 256, "target_lookahead"),
        ({"spec_kv_pc": plan_pb2.SpecKvPc(prompt=plan_pb2.SpecPc(capacity=2048), kv=SPEC_KV)}, 256, "target_lookahead"),
        ({"spec_pc": plan_pb2.SpecPc(capacity=2048)}, None, None),
        ({}, None, None),
    ],
)
def test_the_policy_that_dropped_kv(policy, capacity, selection):
    message = orchestrator_pb2.Decision(policy=plan_pb2.Policy(**policy), prefill_ms=3.0)
    decision = event_of(orchestrator_pb2.GenerateResponse(decision=message))
    assert (decision.kv_capacity, decision.kv_selection) == (capacity, selection)
    assert (decision.keep_full_prefix, decision.continued, decision.prefill_ms) == (None, False, 3.0)


def test_what_is_selected_while_generating():
    kv = plan_pb2.SpecKv(capacity=256, renew_every=12, renew_window=32, first_full_tokens=16)
    by = orchestrator_pb2.KV_LOOKAHEAD_TARGET
    for policy in ({"spec_kv": kv}, {"spec_kv_pc": plan_pb2.SpecKvPc(kv=kv)}):
        message = orchestrator_pb2.Decision(policy=plan_pb2.Policy(**policy), lookahead=by)
        decision = event_of(orchestrator_pb2.GenerateResponse(decision=message))
        assert (decision.kv_lookahead, decision.renew_every) == ("target", 12)
        assert (decision.renew_window, decision.first_full_tokens) == (32, 16)
    plain = event_of(DECISION)
    assert plain.kv_lookahead is plain.renew_every is plain.renew_window is plain.first_full_tokens is None


def test_keep_full_prefix_false_differs_from_unset():
    message = orchestrator_pb2.Decision(keep_full_prefix=False, continued=True)
    decision = event_of(orchestrator_pb2.GenerateResponse(decision=message))
    assert decision.keep_full_prefix is False and decision.continued


def test_usage_with_dropped_kv():
    message = orchestrator_pb2.Usage(reused_entry=True, score_ms=1.5, publish_ms=2.5, coverage=0.0)
    usage = event_of(orchestrator_pb2.GenerateResponse(usage=message))
    assert (usage.reused_entry, usage.score_ms, usage.publish_ms, usage.coverage) == (True, 1.5, 2.5, 0.0)
    assert event_of(USAGE).coverage is None


def test_usage_with_renewals():
    message = orchestrator_pb2.Usage(renewals=3, renewals_skipped=2, accepted_tokens=1, coverage_min=0.0)
    usage = event_of(orchestrator_pb2.GenerateResponse(usage=message))
    assert (usage.renewals, usage.renewals_skipped, usage.accepted_tokens, usage.coverage_min) == (3, 2, 1, 0.0)
    assert event_of(USAGE).coverage_min is None


def test_usage_of_a_migrated_answer():
    message = orchestrator_pb2.Usage(migrated=True)
    assert event_of(orchestrator_pb2.GenerateResponse(usage=message)).migrated
    assert not event_of(USAGE).migrated


def test_gather():
    answer = gather(map(event_of, [DECISION, delta("a", 1), delta("", 2), delta("bc", 3, 4), USAGE]))
    assert (answer.text, answer.token_ids) == ("abc", (1, 2, 3, 4))
    assert answer.decision == event_of(DECISION) and answer.usage == event_of(USAGE)


@pytest.mark.parametrize("events", [[], [DECISION], [USAGE], [delta("a", 1), USAGE]])
def test_gather_refuses_an_incomplete_stream(events):
    with pytest.raises(ValueError):
        gather(map(event_of, events))


def test_deltas_are_values():
    assert event_of(delta("a", 1)) == Delta("a", (1,))


def test_learned_speeds():
    sent = orchestrator_pb2.StageSpeed(
        stage="draft", model="m@r", replica="a", token_ms=1.5, observations=3, contention=0.5, early_renewals=0.25
    )
    (speed,) = info_of(orchestrator_pb2.GetInfoResponse(speeds=[sent])).speeds
    assert speed == StageSpeed("draft", "m@r", "a", 0.0, 1.5, 0.0, 0.0, 3, 0.5, 0.25)


def part(choice=0, **fields):
    return event_of(orchestrator_pb2.GenerateResponse(delta=orchestrator_pb2.TextDelta(choice=choice, **fields)))


def end(choice, **fields):
    return event_of(orchestrator_pb2.GenerateResponse(usage=orchestrator_pb2.Usage(choice=choice, **fields)))


def test_tool_calls_are_put_together():
    first = target_pb2.ToolCallDelta(index=0, id="c0", name="add", arguments='{"a"')
    more = [target_pb2.ToolCallDelta(index=0, arguments=each) for each in (": 1", "}")]
    other = target_pb2.ToolCallDelta(index=1, id="c1", name="sub", arguments="{}")
    answer = gather(
        [event_of(DECISION), *(part(tool_calls=[each]) for each in (first, more[0], other, more[1])), end(0)]
    )
    assert answer.tool_calls == (ToolCall(0, "c0", "add", '{"a": 1}'), ToolCall(1, "c1", "sub", "{}"))


def test_reasoning_and_log_probabilities():
    top = [target_pb2.TopLogprob(token_id=2, logprob=-0.5)]
    logprobs = [target_pb2.TokenLogprob(token_id=1, logprob=-0.25, top=top), target_pb2.TokenLogprob(token_id=9)]
    usage = end(0, prompt_logprobs=logprobs, warnings=["w"], reasoning_tokens=4)
    answer = gather([event_of(DECISION), part(reasoning="h"), part(reasoning="m", text="a", logprobs=logprobs), usage])
    expected = (TokenLogprob(1, -0.25, ((2, -0.5),)), TokenLogprob(9, None, ()))
    assert (answer.reasoning, answer.text, answer.logprobs) == ("hm", "a", expected)
    assert (answer.usage.prompt_logprobs, answer.usage.warnings) == (expected, ("w",))
    assert answer.usage.reasoning_tokens == 4


def test_choices():
    events = [part(1, text="b", token_ids=[2]), part(text="a"), end(1, completion_tokens=1), part(text="c"), end(0)]
    answer = gather([event_of(DECISION), *events])
    assert (answer.text, answer.usage.choice) == ("ac", 0)
    assert [(each.text, each.usage.choice) for each in answer.choices] == [("ac", 0), ("b", 1)]
    with pytest.raises(ValueError, match="without"):
        gather([event_of(DECISION), *events[:-1]])
