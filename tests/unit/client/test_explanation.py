"""From an ExplainResponse to plain values, and the request for one."""

import pytest

from presift.v1 import orchestrator_pb2, plan_pb2
from presift_client.explanation import ExplainedSpan, KvMask, explanation_of
from presift_client.forecasts import RouteForecast
from presift_client.requests import ExplainOptions, Options, explain_request


def test_what_is_unset_is_none():
    span = orchestrator_pb2.ExplainedSpan(tokens=plan_pb2.Span(start=2, end=5), kept=True, importance=0.25)
    explanation = explanation_of(orchestrator_pb2.ExplainResponse(spans=[span]))
    assert explanation.spans == (ExplainedSpan(2, 5, None, True, False, 0.25, None),)
    assert explanation.spans[0].tokens == 3
    assert (explanation.text, explanation.kv_mask, explanation.target_coverage) == ("", None, None)


def test_zero_differs_from_unset():
    span = orchestrator_pb2.ExplainedSpan(kept_share=0.0, characters=plan_pb2.Span(start=0, end=0))
    explanation = explanation_of(orchestrator_pb2.ExplainResponse(spans=[span], target_coverage=0.0))
    (span,) = explanation.spans
    assert (span.kept_share, span.characters, explanation.target_coverage) == (0.0, (0, 0), 0.0)


def test_kept_pairs_of_a_head():
    mask = KvMask(2, 1, 10, bytes([0b00000101, 0b10, 0b10000000, 0]))
    assert mask.kept(0, 0) == [0, 2, 9] and mask.kept(1, 0) == [7]
    for layer, head in ((2, 0), (0, 1), (-1, 0)):
        with pytest.raises(IndexError, match="2 layers and 1 KV heads"):
            mask.kept(layer, head)


def test_a_request():
    options = {"route": "spec_kv", "max_kv_tokens": 9, "strict": True, "kv_lookahead_tokens": 2}
    request = explain_request("x", {**options, "include_kv_mask": True, "span_per_token": True, "deadline_s": 3})
    assert request == orchestrator_pb2.ExplainRequest(
        prompt=orchestrator_pb2.Prompt(text="x"),
        route=plan_pb2.ROUTE_SPEC_KV,
        budget=orchestrator_pb2.Budget(max_kv_tokens=9, strict=True),
        kv=orchestrator_pb2.KvOptions(lookahead_tokens=2),
        include_kv_mask=True,
        span_per_token=True,
    )


@pytest.mark.parametrize("option", ["seed", "temperature", "kv_map"])
def test_unknown_options_are_refused(option):
    with pytest.raises(TypeError, match=option):
        explain_request("x", {option: 1})


def test_the_length_of_the_assumed_answer():
    assert explain_request("x", {"max_new_tokens": 0}).HasField("max_new_tokens")
    assert not explain_request("x", {}).HasField("max_new_tokens")


def test_every_field_of_the_contract_can_be_set():
    options = set(ExplainOptions.__annotations__)
    whole = {"prompt", "budget", "kv"}
    assert {field.name for field in orchestrator_pb2.ExplainRequest.DESCRIPTOR.fields} - whole <= options
    assert {field.name for field in orchestrator_pb2.Budget.DESCRIPTOR.fields} - {"auto_capacity"} <= options
    assert options - {"include_kv_mask", "span_per_token"} <= set(Options.__annotations__)


def test_routes():
    sent = [
        orchestrator_pb2.RouteForecast(route=plan_pb2.ROUTE_SPEC_KV, why_not="is not served here"),
        orchestrator_pb2.RouteForecast(route=plan_pb2.ROUTE_FULL, met=True, chosen=True, draft_ms=0.0, read_tokens=7),
    ]
    kv, full = explanation_of(orchestrator_pb2.ExplainResponse(routes=sent)).routes
    assert kv == RouteForecast("spec_kv", False, "is not served here")
    assert full == RouteForecast("full", True, is_chosen=True, draft_ms=0.0, read_tokens=7)
