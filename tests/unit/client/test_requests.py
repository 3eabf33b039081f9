"""From keyword arguments to a GenerateRequest."""

import json

import numpy as np
import pytest

from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2
from presift_client.requests import Options, generate_request


def test_omitted_options_stay_unset():
    request = generate_request("x", {})
    assert request.prompt.text == "x" and request.route == plan_pb2.ROUTE_AUTO
    for message in (request.budget, request.sampling, request.kv):
        assert not message.ListFields()


def test_zero_differs_from_omitted():
    request = generate_request("x", {"temperature": 0.0, "seed": 0, "compress_above_tokens": 0, "max_new_tokens": 0})
    assert all(request.sampling.HasField(name) for name in ("temperature", "seed", "max_new_tokens"))
    assert request.budget.HasField("compress_above_tokens")


def test_limits_of_the_budget():
    request = generate_request("x", {"max_ttft_ms": 900, "min_coverage": 0.5})
    assert request.budget == orchestrator_pb2.Budget(max_ttft_ms=900, min_coverage=0.5)


def test_adaptive_capacity():
    request = generate_request("x", {"auto_coverage": 0.5})
    assert request.budget == orchestrator_pb2.Budget(auto_capacity=orchestrator_pb2.AutoCapacity(coverage=0.5))
    request = generate_request("x", {"auto_coverage": 0.5, "auto_min_tokens": 8, "auto_max_tokens": 90})
    assert (request.budget.auto_capacity.min_tokens, request.budget.auto_capacity.max_tokens) == (8, 90)
    with pytest.raises(ValueError, match="auto_coverage"):
        generate_request("x", {"auto_max_tokens": 90})


def test_messages():
    request = generate_request(
        None,
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"text": "a"}, {"text": "b", "protected": True}], "protected": True},
            ],
            "tools": [{"name": "ä"}],
        },
    )
    first, second = request.prompt.chat.messages
    assert (first.role, [part.text for part in first.parts], first.protected) == ("system", ["s"], False)
    assert not any(part.document for part in (*first.parts, *second.parts))
    assert second.protected and [(part.text, part.protected) for part in second.parts] == [("a", False), ("b", True)]
    assert [json.loads(tool) for tool in request.prompt.chat.tools_json] == [{"name": "ä"}]


def test_documents_are_marked():
    content = [{"type": "text", "text": "a", "document": True}, {"text": "b", "document": False, "protected": True}]
    request = generate_request(None, {"messages": [{"role": "user", "content": content}]})
    parts = request.prompt.chat.messages[0].parts
    assert [(part.text, part.document, part.protected) for part in parts] == [("a", True, False), ("b", False, True)]


def test_an_unknown_mark_is_refused():
    with pytest.raises(ValueError, match="unknown key documnet; a part has text, protected, document"):
        generate_request(None, {"messages": [{"role": "user", "content": [{"text": "a", "documnet": True}]}]})


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), np.array([1, 2], dtype=np.uint32), range(1, 3)])
def test_token_ids(ids):
    request = generate_request(None, {"token_ids": ids, "protected_spans": [(0, 1)]})
    assert list(request.prompt.token_ids.ids) == [1, 2]
    assert request.prompt.protected_spans == [plan_pb2.Span(start=0, end=1)]


def test_empty_prompts_are_left_to_the_service():
    assert generate_request("", {}).prompt.WhichOneof("prompt") == "text"
    assert generate_request(None, {"token_ids": []}).prompt.WhichOneof("prompt") == "token_ids"
    assert generate_request(None, {"messages": []}).prompt.WhichOneof("prompt") == "chat"


@pytest.mark.parametrize("name", ["auto", "full", "spec_pc", "spec_kv", "spec_kv_pc"])
def test_routes(name):
    assert plan_pb2.Route.Name(generate_request("x", {"route": name}).route) == f"ROUTE_{name.upper()}"


@pytest.mark.parametrize("name", ["", "AUTO", "spec-pc", "unspecified"])
def test_unknown_routes_are_refused_listing_the_known_ones(name):
    with pytest.raises(ValueError, match="auto, full, spec_pc, spec_kv, spec_kv_pc"):
        generate_request("x", {"route": name})


def test_kv_options():
    request = generate_request(
        "x",
        {
            "route": "spec_kv",
            "kv_selection": "draft_mask",
            "keep_full_prefix": False,
            "kv_lookahead_tokens": 0,
            "continue_prompt_tokens": 7,
            "kv_lookahead": "auto",
            "renew_every": 0,
            "renew_window": 4,
            "first_full_tokens": 5,
        },
    )
    assert request.kv == orchestrator_pb2.KvOptions(
        selection=plan_pb2.KV_SELECTION_DRAFT_MASK,
        keep_full_prefix=False,
        lookahead_tokens=0,
        continue_prompt_tokens=7,
        lookahead=orchestrator_pb2.KV_LOOKAHEAD_AUTO,
        renew_every=0,
        renew_window=4,
        first_full_tokens=5,
    )
    for name in ("keep_full_prefix", "lookahead_tokens", "renew_every"):
        assert request.kv.HasField(name)


@pytest.mark.parametrize("name", ["", "DRAFT_MASK", "unspecified"])
def test_unknown_selections_are_refused_listing_the_known_ones(name):
    with pytest.raises(ValueError, match=r"kv_selection .*target_lookahead, draft_mask"):
        generate_request("x", {"kv_selection": name})


@pytest.mark.parametrize("name", ["", "TARGET", "unspecified"])
def test_unknown_lookaheads_are_refused_listing_the_known_ones(name):
    with pytest.raises(ValueError, match=r"kv_lookahead .*draft, target, auto"):
        generate_request("x", {"kv_lookahead": name})


def test_every_field_of_the_contract_can_be_set():
    options = set(Options.__annotations__)
    kv = {
        "selection": "kv_selection",
        "lookahead_tokens": "kv_lookahead_tokens",
        "lookahead": "kv_lookahead",
    }
    assert {kv.get(field.name, field.name) for field in orchestrator_pb2.KvOptions.DESCRIPTOR.fields} <= options
    auto = {f"auto_{field.name}" for field in orchestrator_pb2.AutoCapacity.DESCRIPTOR.fields}
    for message in (orchestrator_pb2.Budget, target_pb2.Sampling):
        assert {field.name for field in message.DESCRIPTOR.fields} - {"auto_capacity"} | auto <= options
    own = {"single_tool_call": "parallel_tool_calls", "tool_function": "tool_choice"}
    held = {"prompt", "budget", "sampling", "kv"}
    fields = {field.name for field in orchestrator_pb2.GenerateRequest.DESCRIPTOR.fields} - held
    assert {own.get(name, name) for name in fields} <= options


def test_sampling():
    given = {
        "min_p": 0.5, "presence_penalty": -1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.5,
        "logit_bias": {5: -100.0}, "min_new_tokens": 3, "top_logprobs": 0, "prompt_logprobs": True,
        "keep_special_tokens": True,
    }  # fmt: skip
    assert generate_request("x", given).sampling == target_pb2.Sampling(**given)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"json_schema": {"type": "object"}}, {"json_schema": '{"type": "object"}'}),
        ({"json_schema": "{}"}, {"json_schema": "{}"}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"ebnf": "root ::= 'a'"}, {"ebnf": "root ::= 'a'"}),
        ({"structural_tag": {"structures": []}}, {"structural_tag": '{"structures": []}'}),
    ],
)
def test_grammars(given, sent):
    assert generate_request("x", given).sampling == target_pb2.Sampling(**sent)


def test_two_grammars_are_refused():
    with pytest.raises(ValueError, match="one of json_schema and regex"):
        generate_request("x", {"regex": "a", "json_schema": {}})


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "none"}, {"raw_text": True}),
        ({"tool_choice": "required"}, {"tool_choice": target_pb2.TOOL_CHOICE_REQUIRED}),
        ({"tool_choice": "add"}, {"tool_choice": target_pb2.TOOL_CHOICE_FUNCTION, "tool_function": "add"}),
        ({"parallel_tool_calls": False}, {"single_tool_call": True}),
        ({"parallel_tool_calls": True}, {}),
        ({"choices": 3, "raw_text": True}, {"choices": 3, "raw_text": True}),
        ({"migrate": True}, {"migrate": True}),
        ({"migrate": False}, {}),
    ],
)
def test_choices_and_tool_choice(given, sent):
    request = generate_request("x", given)
    names = ("tool_choice", "tool_function", "single_tool_call", "raw_text", "choices", "migrate")
    assert {name: getattr(request, name) for name in names if getattr(request, name)} == sent


def test_template_variables_and_an_answer_to_continue():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "He", "reasoning": "hm"}]
    options = {"messages": turns, "template_kwargs": {"enable_thinking": False}, "continue_final_message": True}
    chat = generate_request(None, options).prompt.chat
    assert json.loads(chat.template_kwargs_json) == {"enable_thinking": False} and chat.continue_final_message
    assert chat.messages[1].reasoning == "hm"


@pytest.mark.parametrize("options", [{"template_kwargs": {"a": 1}}, {"continue_final_message": True}])
def test_template_options_require_messages(options):
    with pytest.raises(ValueError, match="require messages"):
        generate_request("x", options)
