"""What a caller marks as droppable or protected means the same in all three APIs for chats."""

import pytest

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.chat_prompts import chat_prompt
from presift.orchestrator.api.http.messages.conversion import chat_from_messages
from presift.orchestrator.api.http.messages.schema import MessagesBody
from presift.orchestrator.api.http.responses.conversion import chat_from_responses
from presift.orchestrator.api.http.responses.schema import ResponsesBody
from presift.orchestrator.api.http.schema import ChatBody, validate

SCHEMA = {"type": "object", "properties": {"q": {"type": "string", "description": "words"}}}
PRESIFT = {"protected": [{"message": 0}]}
USER = {"role": "user", "content": "find it"}
LAST = {"role": "user", "content": [{"type": "text", "text": "a letter", "document": True}]}


def of_chat(**tool):
    function = {"name": "search", "description": "finds", "parameters": SCHEMA}
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}}
    result = {"type": "text", "text": "old result", "document": True}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [result]},
        LAST,
    ]
    tools = [{"type": "function", "function": function} | tool, {"type": "function", "function": function}]
    given = {"messages": messages, "tools": tools, "presift": PRESIFT}
    return chat_prompt(validate(ChatBody, given, {}), frozenset())


def of_messages(**tool):
    plain = {"name": "search", "description": "finds", "input_schema": SCHEMA}
    call = {"type": "tool_use", "id": "c1", "name": "search", "input": {"q": "x"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "old result", "document": True}
    messages = [USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}, LAST]
    given = {"model": "m", "max_tokens": 9, "messages": messages, "tools": [plain | tool, plain], "presift": PRESIFT}
    translated = chat_from_messages(validate(MessagesBody, given, {}), given, {}, frozenset())
    return chat_prompt(validate(ChatBody, translated.given, {}), frozenset())


def of_responses(**tool):
    plain = {"type": "function", "name": "search", "description": "finds", "parameters": SCHEMA}
    items = [
        USER,
        {"type": "function_call", "call_id": "c1", "name": "search", "arguments": '{"q": "x"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "old result", "document": True},
        LAST,
    ]
    given = {"model": "m", "input": items, "tools": [plain | tool, plain], "presift": PRESIFT}
    translated = chat_from_responses(validate(ResponsesBody, given, {}), given, {})
    return chat_prompt(validate(ChatBody, translated.given, {}), frozenset())


def marks(chat):
    parts = [
        (message.role, part.text, part.protected, part.document) for message in chat.messages for part in message.parts
    ]
    return chat.document_tools, [part for part in parts if part[1]]


@pytest.mark.parametrize("of", [of_messages, of_responses])
@pytest.mark.parametrize("tool", [{"document": True}, {"document": False}, {}], ids=str)
def test_marks_mean_the_same_as_in_a_chat(of, tool):
    chat, wanted = of(**tool), of_chat(**tool)
    assert marks(chat) == marks(wanted) and chat.tools_json == wanted.tools_json
    assert (0 in chat.document_tools) is tool.get("document", False)
    assert ("tool", "old result", False, True) in marks(chat)[1] and ("user", "find it", True, False) in marks(chat)[1]


@pytest.mark.parametrize("of", [of_chat, of_messages, of_responses])
def test_another_value_of_the_mark_on_a_tool_is_refused_by_name(of):
    with pytest.raises(InvalidRequest) as refused:
        of(document="yes")
    assert refused.value.field.endswith("[0].document")
