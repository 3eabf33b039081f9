"""The schema of bodies: presift's options are the protos' fields, with protobuf's numbers and names."""

import pytest

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import KvSelection
from presift.orchestrator.api.http import schema
from presift.orchestrator.api.http.requests import request_from_body
from presift.orchestrator.domain.caller import Caller, TenantLimits
from presift.orchestrator.domain.request import AutoCapacity
from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2

OPENAI_SAMPLING = {
    *("max_new_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("top_logprobs", "prompt_logprobs"),
}
MESSAGES = {
    schema.BudgetOptions: orchestrator_pb2.Budget,
    schema.AutoCapacityOptions: orchestrator_pb2.AutoCapacity,
    schema.KvOptions: orchestrator_pb2.KvOptions,
    schema.SpanOptions: plan_pb2.Span,
}


def completion(**presift):
    return schema.validate(schema.CompletionBody, {"model": "m", "prompt": [1, 2, 3], "presift": presift})


@pytest.mark.parametrize("options", MESSAGES, ids=lambda each: each.__name__)
def test_every_field_of_the_protos_is_an_option(options):
    assert set(options.model_fields) == {field.name for field in MESSAGES[options].DESCRIPTOR.fields}


def test_every_field_of_sampling_is_an_option_or_openais():
    fields = {field.name for field in target_pb2.Sampling.DESCRIPTOR.fields}
    assert set(schema.SamplingOptions.model_fields) == fields - OPENAI_SAMPLING


@pytest.mark.parametrize("route", ["spec_pc", "SPEC_PC", "ROUTE_SPEC_PC"])
def test_names_are_the_clients_or_the_protos(route):
    body = completion(route=route, kv={"selection": "KV_SELECTION_TARGET_LOOKAHEAD"})
    assert (body.presift.route, body.presift.kv.selection) == (Route.SPEC_PC, KvSelection.TARGET_LOOKAHEAD)
    assert completion(route="auto").presift.route is None


@pytest.mark.parametrize("tokens", [20, 20.0, "20", "+20", "20.0", "2_0", "2e1"])
def test_integers_are_those_of_protobufs_json(tokens):
    assert completion(budget={"max_kv_tokens": tokens}).presift.budget.max_kv_tokens == 20


@pytest.mark.parametrize("tokens", [True, 20.5, "", "-1", "20.5", " 20", "NaN", "many", 2**32, "9" * 5000, [20]])
def test_other_integers_are_rejected(tokens):
    with pytest.raises(InvalidRequest, match=r"presift\.budget\.max_kv_tokens"):
        completion(budget={"max_kv_tokens": tokens})


def test_floats_are_those_of_the_protos():
    """Otherwise the two APIs would decide and cache differently."""
    body = completion(budget={"min_coverage": 0.1, "auto_capacity": {"coverage": 0.3}})
    budget = orchestrator_pb2.Budget(min_coverage=0.1, auto_capacity=orchestrator_pb2.AutoCapacity(coverage=0.3))
    assert body.presift.budget.min_coverage == budget.min_coverage
    assert body.presift.budget.auto_capacity.coverage == budget.auto_capacity.coverage


@pytest.mark.parametrize("coverage", ["0.5", " 5e-1", 0.5])
def test_numbers_are_those_of_protobufs_json(coverage):
    budget = completion(budget={"min_coverage": coverage, "auto_capacity": {"coverage": coverage}}).presift.budget
    assert budget.min_coverage == budget.auto_capacity.coverage == 0.5
    assert completion(budget={"min_coverage": True}).presift.budget.min_coverage == 1


@pytest.mark.parametrize("coverage", ["", "half", "NaN", "Infinity", "9" * 5000, [0.5], {}])
def test_other_numbers_are_rejected(coverage):
    with pytest.raises(InvalidRequest, match=r"presift\.budget\.min_coverage"):
        completion(budget={"min_coverage": coverage})


def test_a_request_is_complete_when_made():
    caller = Caller("acme", TenantLimits(5, 1), authenticated=True)
    body = completion(budget={"auto_capacity": {"coverage": 0.5}}, sampling={"top_k": 3})
    request = request_from_body(body, 7, caller, "deployment")
    assert (request.tenant, request.limits, request.salt) == ("acme", TenantLimits(5, 1), caller.salt("deployment"))
    assert (request.sampling.max_new_tokens, request.sampling.top_k) == (7, 3)
    assert request.budget.auto_capacity == AutoCapacity(0.5)
