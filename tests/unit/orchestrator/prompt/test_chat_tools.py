"""Tools and tool calls: passed on as templates expect them, never dropped, never silently lost."""

import json

import numpy as np
import pytest

from presift.core.errors import InvalidRequest
from presift.core.spans import covered
from presift.orchestrator.admission.request_cost import request_cost
from presift.orchestrator.api.grpc.requests import explain_request_from_wire, prompt_from_wire, request_from_wire
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.limits import MAX_TOOL_CALLS, MAX_TOOL_CALLS_CHARACTERS
from presift.orchestrator.domain.request import Chat, Message, Request, TextPart
from presift.orchestrator.prompt.chat_frame import find_texts
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.chat_tools import INVALID_ARGUMENTS, parse_tool_calls
from presift.orchestrator.prompt.protection import droppable_ranges
from presift.orchestrator.prompt.template_messages import template_messages
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.v1 import orchestrator_pb2

LONG = "the lazy dog sleeps on. " * 40
CALL = {"id": "c1", "type": "function", "function": {"name": "fox", "arguments": {"city": "Zürich"}}}


def with_tools(messages, tools, **_):
    """Like Qwen's: definitions first, calls at their place, the id beside the result."""
    out = [f"tools: {json.dumps(tools)}\n"] if tools else []
    for message in messages:
        out.append(f"<|im_start|>{message['role']}{message.get('tool_call_id', '')}{message.get('name', '')}")
        if message["content"]:
            out.append(f"\n{message['content']}")
        out += [f"\n<call>{json.dumps(call, ensure_ascii=False)}</call>" for call in message.get("tool_calls", ())]
        out.append("<|im_end|>\n")
    return "".join(out)


def without(messages, tools, **_):
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)


def say(role, text="", **given):
    return Message(role, (TextPart(text),), **given)


CALLED = (
    say("user", LONG),
    say("assistant", tool_calls_json=(json.dumps(CALL),)),
    say("tool", LONG, tool_call_id="c1", name="fox"),
    say("user", "why?"),
)


async def test_tool_calls_and_their_ids_and_names_are_never_dropped(bpe):
    tokenizer = PromptTokenizer(bpe, with_tools)
    tokenized = await tokenizer.tokenize(Chat(CALLED, ('{"name": "fox"}',)))
    rendered, offsets = await tokenizer.render_with_offsets(Chat(CALLED, ('{"name": "fox"}',)))
    kept = covered(tokenized.protected, len(offsets))
    texts = "".join(rendered[start:end] for (start, end), is_kept in zip(offsets, kept, strict=True) if is_kept)
    assert '<call>{"id": "c1"' in rendered and "toolc1fox" in rendered
    for word in ('tools: [{"name": "fox"}]', '<call>{"id": "c1"', 'rich"}', "toolc1fox", "why?"):
        assert word in texts
    assert np.count_nonzero(~kept) > 100  # the texts may be dropped: an empty content does not protect the rest


def test_an_empty_content_is_empty_in_the_frame_too():
    chat = Chat(CALLED)
    rendered, frame = render(chat), find_texts(RenderedChat.of(chat, render))
    assert [rendered[each.start : each.end] for each in droppable_ranges(chat, frame)] == [LONG, LONG]


def render(chat):
    return with_tools(template_messages(chat), None)


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (Chat((say("user", "hi"),), ("{}", "{}")), "prompt.chat.tools_json"),
        (Chat(CALLED), "prompt.chat.messages[1].tool_calls_json"),
    ],
)
async def test_tools_that_the_template_does_not_support_are_refused(bpe, chat, field):
    with pytest.raises(InvalidRequest, match="chat template does not support") as refusal:
        await PromptTokenizer(bpe, without).tokenize(chat)
    assert refusal.value.field == field and "given" in refusal.value.details["value"]
    await PromptTokenizer(bpe, with_tools).tokenize(chat)


async def test_a_template_that_requires_tools_supports_them(bpe):
    def asking(messages, tools, **_):
        if not tools:
            raise InvalidRequest("prompt.chat", "refused", "tools")
        return without(messages, tools)

    await PromptTokenizer(bpe, asking).tokenize(Chat((say("user", "hi"),), ("{}",)))


async def test_a_chat_without_tools_is_rendered_only_twice(bpe):
    renders = []
    tokenizer = PromptTokenizer(bpe, lambda messages, tools, **_: renders.append(tools) or without(messages, tools))
    await tokenizer.tokenize(Chat((say("user", "hi"),)))
    renders.clear()  # the first call asks the template how it writes turns
    await tokenizer.tokenize(Chat((say("user", "hello"),)))
    assert len(renders) == 2


@pytest.mark.parametrize(
    ("call", "read"),
    [
        (CALL, CALL),
        ({**CALL, "function": {"name": "fox", "arguments": '{"city": "Zürich"}'}}, CALL),
        ({"name": "fox", "arguments": "{}"}, {"name": "fox", "arguments": {}}),
        ({"name": "fox", "arguments": ""}, {"name": "fox", "arguments": {}}),
        ({"name": "fox", "arguments": " \n"}, {"name": "fox", "arguments": {}}),
        ({"name": "fox", "arguments": None}, {"name": "fox", "arguments": {}}),
        ({"name": "fox", "arguments": "null"}, {"name": "fox", "arguments": {}}),
        ({"name": "fox", "arguments": '{"city": '}, {"name": "fox", "arguments": {INVALID_ARGUMENTS: '{"city": '}}),
        ({"name": "fox", "arguments": "[1]"}, {"name": "fox", "arguments": {INVALID_ARGUMENTS: "[1]"}}),
        ({"function": {"name": "fox"}}, {"function": {"name": "fox", "arguments": {}}}),
    ],
)
def test_arguments_reach_the_template_as_an_object(call, read):
    assert parse_tool_calls(say("assistant", tool_calls_json=(json.dumps(call),)), 0) == [read]


@pytest.mark.parametrize(
    "call",
    [
        "{",
        "[]",
        "{}",
        '{"name": 1}',
        '{"name": ""}',
        '{"function": "fox"}',
        '{"name": "fox", "arguments": [1]}',
        '{"name": "fox", "arguments": {"a": "\\ud800"}}',
        '{"name": "fox", "arguments": ' + "[" * 100_000,
    ],
)
async def test_invalid_tool_calls_are_refused(bpe, call):
    with pytest.raises(InvalidRequest) as refusal:
        await PromptTokenizer(bpe, with_tools).tokenize(Chat((say("assistant", tool_calls_json=(call,)),)))
    assert refusal.value.field.startswith("prompt.chat.messages[0].tool_calls_json[0]")


@pytest.mark.parametrize(
    ("role", "given", "field"),
    [
        ("user", {"tool_calls_json": ("{}",)}, "tool_calls_json"),
        ("assistant", {"tool_call_id": "c1"}, "tool_call_id"),
        ("user", {"name": "ann"}, "name"),
    ],
)
def test_fields_that_a_role_does_not_have_are_refused(role, given, field):
    with pytest.raises(InvalidRequest) as refusal:
        say(role, "x", **given)
    assert refusal.value.field == f"prompt.chat.messages.{field}"


def wire(**given):
    message = orchestrator_pb2.Message(role="assistant", **given)
    return orchestrator_pb2.Prompt(chat=orchestrator_pb2.Chat(messages=[message]))


def test_calls_are_read_from_the_wire():
    (message,) = prompt_from_wire(wire(tool_calls_json=["{}"])).messages
    assert message.tool_calls_json == ("{}",)


@pytest.mark.parametrize(
    "given",
    [
        {"tool_calls_json": ["{}"] * (MAX_TOOL_CALLS + 1)},
        {"tool_calls_json": ["x" * (MAX_TOOL_CALLS_CHARACTERS + 1)]},
        {"name": "x" * (MAX_TOOL_CALLS_CHARACTERS + 1)},
        {"tool_call_id": "x" * (MAX_TOOL_CALLS_CHARACTERS + 1)},
    ],
)
def test_tool_calls_are_limited(given):
    for read, kind in (
        (request_from_wire, orchestrator_pb2.GenerateRequest),
        (explain_request_from_wire, orchestrator_pb2.ExplainRequest),
    ):
        with pytest.raises(InvalidRequest, match="at most") as refusal:
            read(kind(prompt=wire(**given)), Caller(), "")
        assert refusal.value.field == "prompt.chat.messages.tool_calls_json"


def test_a_protected_document_is_refused():
    part = orchestrator_pb2.TextPart(text="x", document=True, protected=True)
    with pytest.raises(InvalidRequest, match="document and protected"):
        prompt_from_wire(wire(parts=[part]))


def test_tool_calls_count_as_prompt_tokens_for_admission():
    little, much = (Request(Chat((say("assistant", tool_calls_json=("x" * size,)),))) for size in (4, 4000))
    assert request_cost(much).tokens - request_cost(little).tokens == 999
