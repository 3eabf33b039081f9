"""The domain's chat from the body of a chat completion."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from typing import Any

from presift.core.errors import InvalidRequest
from presift.core.limits import check_limits
from presift.orchestrator.api.http import schema
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.schema import ChatBody, PartReference
from presift.orchestrator.api.http.thinking import thinking_variables
from presift.orchestrator.domain.limits import CHAT, MAX_PARTS
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_tools import read_document_marks

_ROLES = {"developer": "system"}
# The parts of a chat that a body refers to: (message, part); part None is all of them.
_Places = Set[tuple[int, int | None]]


def chat_prompt(body: ChatBody, template: frozenset[str]) -> Chat:
    """`template`: the variables that the target's chat template reads. Raises InvalidRequest."""
    if body.presift.protected_spans:
        raise InvalidRequest("prompt.protected_spans", "set on a chat prompt", "set on token id prompts only")
    if (parts := sum(len(message.content or ()) for message in body.messages)) > MAX_PARTS:
        raise InvalidRequest("prompt.chat.messages.parts", f"{parts} parts", f"at most {MAX_PARTS}")
    if body.add_generation_prompt is body.continue_final_message and body.continue_final_message is False:
        raise InvalidRequest("add_generation_prompt", False, "true, unless continue_final_message is")
    protected = _places(body.messages, body.presift.protected, "presift.protected")
    documents = _places(body.messages, body.presift.documents, "presift.documents")
    messages = tuple(_message(message, at, protected, documents) for at, message in enumerate(body.messages))
    tools, document_tools = read_document_marks(_tools(body))
    chat = Chat(
        messages,
        tools,
        _variables(body, template),
        body.continue_final_message,
        separate_parts=True,
        document_tools=document_tools,
    )
    check_limits(chat, CHAT)
    return chat


def _message(message: schema.Message, at: int, protected: _Places, documents: _Places) -> Message:
    place = f"messages[{at}]"
    parts, reasoning = [], message.reasoning_content or message.reasoning or ""
    for number, part in enumerate(message.content or ()):
        if part.is_reasoning:
            reasoning += part.text
            continue
        marks = {(at, None), (at, number)}
        is_protected = part.protected or not marks.isdisjoint(protected)
        is_document = part.document or not marks.isdisjoint(documents)
        if is_protected and is_document:
            raise InvalidRequest(f"{place}.content[{number}]", "document and protected", "one of them")
        parts.append(TextPart(part.text, is_protected, is_document))
    if message.content is None and message.refusal:
        parts = [TextPart(message.refusal)]
    role = _ROLES.get(message.role, message.role)
    # Templates have no place for the names of others.
    name = (message.name or "") if role == "tool" else ""
    tool_calls = tuple(_json(call, f"{place}.tool_calls") for call in message.tool_calls or ())
    try:
        return Message(
            role, tuple(parts), message.protected, tool_calls, name, message.tool_call_id or "", reasoning=reasoning
        )
    except InvalidRequest as error:  # the domain's message does not know its number
        parameter = ParameterNames().parameter(error.field, place)
        raise InvalidRequest(parameter, error.value, error.limit) from None


def _tools(body: ChatBody) -> tuple[str, ...]:
    """The definitions that the prompt shows: with "none" no tool, with a named tool only that one."""
    tools = tuple(_tool(tool, at) for at, tool in enumerate(body.tools or ()))
    choice = body.tool_choice
    if choice == "none":
        return ()
    if choice is None or isinstance(choice, str):
        return tools
    names = [tool["function"].get("name") for tool in body.tools or ()]
    if choice.function.name not in names:
        known = ", ".join(str(name) for name in names[:8]) or "none"
        raise InvalidRequest("tool_choice.function.name", brief(choice.function.name), f"one of the tools ({known})")
    return tuple(text for text, name in zip(tools, names, strict=True) if name == choice.function.name)


def _tool(tool: dict[str, Any], at: int) -> str:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        kind = brief(tool.get("type"))
        raise InvalidRequest(f"tools[{at}].type", kind, "'function', with the definition in \"function\"")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"tools[{at}].function.name", brief(name), "a string")
    return _json({"type": "function"} | tool, f"tools[{at}]")


def _variables(body: ChatBody, template: frozenset[str]) -> str:
    """What `chat_template_kwargs` names takes precedence over what is derived from other parameters."""
    given, ignored = body.chat_template_kwargs or {}, set(ignored_variables(body, template))
    used = {name: value for name, value in given.items() if name not in ignored}
    variables = thinking_variables(body, template) | used
    return _json(variables, "chat_template_kwargs") if variables else ""


def ignored_variables(body: ChatBody, template: frozenset[str]) -> list[str]:
    """The names in `chat_template_kwargs` that are false or null and that the template does not read.

    Applications send `enable_thinking: false` to every model. Any other value for an unknown variable is refused:
    SGLang drops it, and the caller would get an answer without the reasoning that it asked for.
    """
    given = body.chat_template_kwargs or {}
    return [name for name, value in given.items() if name not in template and (value is None or value is False)]


def _json(value: dict[str, Any], parameter: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise InvalidRequest(parameter, "a number that JSON does not have", "JSON") from None


def _places(messages: Sequence[schema.Message], references: Sequence[PartReference], parameter: str) -> _Places:
    return {_place(messages, each, f"{parameter}[{at}]") for at, each in enumerate(references)}


def _place(messages: Sequence[schema.Message], reference: PartReference, parameter: str) -> tuple[int, int | None]:
    number, part = reference.message, reference.part
    if not -len(messages) <= number < len(messages):
        raise InvalidRequest(f"{parameter}.message", brief(number), f"the number of one of {len(messages)} messages")
    parts = messages[number].content or ()
    if part is not None and part >= len(parts):
        raise InvalidRequest(f"{parameter}.part", brief(part), f"the number of one of {len(parts)} parts")
    return number % len(messages), part
