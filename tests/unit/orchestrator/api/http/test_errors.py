"""Errors over HTTP name the caller's own parameter; `presift.field` stays the field of the domain."""

import pytest

from presift.core.errors import BudgetExceeded, InvalidRequest, Overloaded, PromptTooLong
from presift.core.generation import ContextSizes
from presift.orchestrator.api.http.errors import error_response
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.sampling_values import parameter_names
from presift.orchestrator.api.http.schema import ChatBody, CompletionBody, validate

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
BODIES = {
    "prompt": (CompletionBody, {"model": "m", "prompt": "a"}),
    "max_tokens": (ChatBody, CHAT | {"max_tokens": 5}),
    "max_completion_tokens": (ChatBody, CHAT | {"max_completion_tokens": 5}),
}
PARAMETERS = {
    "prompt.chat": "messages",
    "prompt.chat.messages.role": "messages.role",
    "prompt.chat.messages.parts": "messages.content",
    "prompt.chat.messages.tool_calls_json": "messages.tool_calls",
    "prompt.chat.messages[3]": "messages[3]",
    "prompt.chat.messages[3].tool_calls_json[1].arguments": "messages[3].tool_calls[1].arguments",
    "prompt.chat.messages[12].parts[0]": "messages[12].content[0]",
    "prompt.chat.tools_json[1]": "tools[1]",
    "prompt.protected_spans": "presift.protected_spans",
    "protected_spans": "presift.protected_spans",
    "sampling.temperature": "temperature",
    "sampling.stop": "stop",
    "sampling.top_k": "top_k",
    "choices": "n",
    "tool_choice": "tool_choice",
    "prompt.chat.template_kwargs_json": "chat_template_kwargs",
    "prompt.chat.continue_final_message": "continue_final_message",
    "budget": "presift.budget",
    "budget.auto_capacity.coverage": "presift.budget.auto_capacity.coverage",
    "kv.selection": "presift.kv.selection",
    "route": "presift.route",
    "tokens_per_minute": "tokens_per_minute",
}


def names(kind):
    return parameter_names(validate(*BODIES[kind]))


@pytest.mark.parametrize(("field", "parameter"), PARAMETERS.items())
def test_a_field_has_its_parameter(field, parameter):
    assert ParameterNames().parameter(field) == parameter


def test_a_message_has_its_number_where_it_is_known():
    assert ParameterNames().parameter("prompt.chat.messages.name", "messages[3]") == "messages[3].name"


def test_the_names_are_those_that_the_caller_used():
    for field in ("prompt", "prompt.text", "prompt.token_ids", "token_ids"):
        assert names("prompt").parameter(field) == "prompt"
    assert names("max_tokens").parameter("prompt") == "messages"
    for spelling in ("max_tokens", "max_completion_tokens"):
        assert names(spelling).parameter("sampling.max_new_tokens") == spelling


def test_options_have_the_place_where_they_were_given():
    body = CHAT | {"min_tokens": 3, "presift": {"sampling": {"top_k": 5}}, "guided_json": {"type": "object"}}
    names = parameter_names(validate(ChatBody, body))
    assert names.parameter("sampling.top_k") == "presift.sampling.top_k"
    assert names.parameter("sampling.min_new_tokens") == "min_tokens"
    assert names.parameter("sampling.json_schema") == "guided_json"
    names = parameter_names(validate(CompletionBody, {"prompt": "a", "logprobs": 3}))
    assert names.parameter("sampling.top_logprobs") == "logprobs"


def test_a_message_is_rebuilt_with_the_parameter():
    error = InvalidRequest("budget.max_prompt_tokens", 0, ">= 1")
    body = error_response(error, names("prompt")).body["error"]
    assert body["message"] == "presift.budget.max_prompt_tokens is 0; it must be >= 1"
    assert body["param"] == "presift.budget.max_prompt_tokens"
    assert body["presift"]["field"] == "budget.max_prompt_tokens"


@pytest.mark.parametrize(
    ("parameters", "field", "parameter"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "json_schema", "response_format"),
        ({"presift": {"sampling": {"regex": "("}}}, "regex", "presift.sampling.regex"),
        ({"guided_regex": "("}, "regex", "guided_regex"),
        ({"regex": "("}, "regex", "regex"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_has_the_callers_name(parameters, field, parameter):
    """The target's words begin with its own name of the field."""
    field = f"sampling.{field}"
    error = InvalidRequest(field, "refused", "a grammar that can be compiled", f"{field} cannot be compiled: why")
    body = error_response(error, parameter_names(validate(ChatBody, CHAT | parameters))).body["error"]
    assert (body["param"], body["message"]) == (parameter, f"{parameter} cannot be compiled: why")
    assert body["presift"]["field"] == field


def test_tools_that_make_no_grammar_are_named():
    error = InvalidRequest("format.tools_json", "refused", "a grammar", "format.tools_json cannot be compiled: why")
    assert error_response(error, names("max_tokens")).body["error"]["message"] == "tools cannot be compiled: why"


def test_a_message_of_its_own_stays():
    error = BudgetExceeded("budget.max_ttft_ms", 9, 5, "strict budget not met: too late")
    body = error_response(error, names("prompt")).body["error"]
    assert (body["message"], body["param"]) == ("strict budget not met: too late", "presift.budget.max_ttft_ms")


@pytest.mark.parametrize(("kind", "place"), [("prompt", "prompt"), ("max_tokens", "messages")])
def test_a_prompt_that_is_too_long_has_openais_words_and_presifts(kind, place):
    error = PromptTooLong("prompt", "500 tokens", "<= 395", "too long; no draft reads it", ContextSizes(400, 500, 5))
    body = error_response(error, names(kind)).body["error"]
    assert body["message"] == (
        "This model's maximum context length is 400 tokens. However, you requested 505 tokens "
        f"(500 in the {place}, 5 in the completion). Please reduce the length of the {place} or completion. "
        "(too long; no draft reads it; the prompt is too long)"
    )
    assert (body["code"], body["param"]) == ("context_length_exceeded", place)
    assert error.message == "too long; no draft reads it", "over gRPC"


def test_without_sizes_the_error_is_recognised_too():
    """A target's own error over gRPC: LiteLLM looks for "model's maximum context limit"."""
    message = error_response(PromptTooLong("token_ids", 405, 400, "405 tokens; the context is 400")).body["error"]
    assert message["message"].startswith("405 tokens; the context is 400. ")
    assert "model's maximum context limit" in message["message"]


def test_before_the_body_is_read_fields_keep_their_names():
    """An unknown parameter `route` is the caller's, not the domain's."""
    assert error_response(InvalidRequest("route", "given", "left out")).body["error"]["param"] == "route"


def test_overload_says_when_to_retry():
    headers = error_response(Overloaded("calls", 2, 1, 1.25)).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1250")


def test_an_overload_that_would_come_again_is_not_retried():
    assert error_response(Overloaded("answer", 2, 1, None)).headers == {"x-should-retry": "false"}
