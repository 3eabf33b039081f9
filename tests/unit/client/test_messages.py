"""From messages to a Chat: conversations with tools, and errors that are found before anything is sent."""

import json

import pytest

from presift_client import InvalidRequest
from presift_client.requests import explain_request, generate_request

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}


def sent(*messages, make=generate_request):
    return make(None, {"messages": messages}).prompt.chat.messages


@pytest.mark.parametrize("make", [generate_request, explain_request])
@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}, {"content": []}])
def test_a_conversation_with_tools(make, content):
    asked, answer = sent(
        {"role": "assistant", **content, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
        make=make,
    )
    assert [json.loads(call) for call in asked.tool_calls_json] == [CALL]
    assert "".join(part.text for part in asked.parts) == "" and asked.role == "assistant"
    assert (answer.role, answer.name, answer.tool_call_id, answer.parts[0].text) == ("tool", "weather", "c1", "sunny")


def test_empty_fields_of_other_clients_are_ignored():
    (message,) = sent({"role": "assistant", "content": "hi", "tool_calls": None, "name": None})
    assert not message.tool_calls_json and message.name == ""


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (
            {"role": "user", "content": "a", "document": True},
            r'messages\[0\]: "document" marks a part, not a message: .*"text"',
        ),
        (
            {"role": "user", "content": [{"text": "a", "document": True, "protected": True}]},
            r"messages\[0\]\.content\[0\]: document .* and protected .* exclude each other",
        ),
        (
            {"role": "user", "content": "a", "function_call": {}},
            "unknown key function_call; a message has role, .*tool_call_id",
        ),
        ({"role": "user"}, "no content; only a message with tool_calls"),
        ({"content": "a"}, "no role"),
        ({"role": "user", "content": [{"document": True}]}, "no text"),
    ],
)
def test_malformed_messages_are_refused(message, match):
    with pytest.raises(ValueError, match=match):
        sent(message)


HALF = "ab\ud800c"


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        (HALF, {}, "prompt"),
        (None, {"messages": [{"role": "user", "content": HALF}]}, "messages[0].content[0].text"),
        (None, {"messages": [{"role": "tool", "content": "x", "name": HALF}]}, "messages[0].name"),
        (None, {"messages": [{"role": HALF, "content": "x"}]}, "messages[0].role"),
        ("x", {"stop": ["y", HALF]}, "stop"),
    ],
)
def test_an_unpaired_surrogate_is_refused_by_field(prompt, options, field):
    with pytest.raises(InvalidRequest) as refusal:
        generate_request(prompt, options)
    assert refusal.value.field == field and "character 2" in refusal.value.value
    assert refusal.value.reason == "INVALID_REQUEST" and refusal.value.limit
    assert "UnicodeEncodeError" not in repr(refusal.value.__context__) or refusal.value.__suppress_context__
