"""Tool definitions, tool calls and further variables of a chat: from JSON to the objects that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message

# The one key of the arguments of a call that a model wrote wrongly.
INVALID_ARGUMENTS = "invalid_arguments"


def parse_tools(chat: Chat) -> list[Any]:
    """The tool definitions. Raises InvalidRequest for one that is not a JSON object."""
    return [_object(f"prompt.chat.tools_json[{number}]", text) for number, text in enumerate(chat.tools_json)]


def read_document_marks(tools_json: Sequence[str]) -> tuple[tuple[str, ...], frozenset[int]]:
    """The definitions without the mark `"document": true`, which no template reads, and the numbers of those that had
    it. Raises InvalidRequest for another value of the mark."""
    plain, marked = list[str](), set[int]()
    for number, text in enumerate(tools_json):
        plain.append(text)
        if '"document"' not in text:
            continue
        tool = _object(f"prompt.chat.tools_json[{number}]", text)
        mark = tool.pop("document", False)
        if not isinstance(mark, bool):
            raise InvalidRequest(f"prompt.chat.tools_json[{number}].document", "another JSON value", "true or false")
        plain[-1] = json.dumps(tool)
        if mark:
            marked.add(number)
    return tuple(plain), frozenset(marked)


def descriptions(value: Any) -> list[str]:
    """The texts under the key "description" of a definition, of its function and of its parameters."""
    if isinstance(value, list):
        return [text for each in value for text in descriptions(each)]
    if not isinstance(value, dict):
        return []
    found = list[str]()
    for name, of in value.items():
        found += [of] if name == "description" and isinstance(of, str) else descriptions(of)
    return found


def with_descriptions(value: Any, texts: Iterator[str]) -> Any:
    """The definition with other texts for its `descriptions`, in their order."""
    if isinstance(value, list):
        return [with_descriptions(each, texts) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: next(texts) if name == "description" and isinstance(of, str) else with_descriptions(of, texts)
        for name, of in value.items()
    }


def tool_names(chat: Chat) -> list[Any]:
    """The names of the tools; None for a tool without one. Raises as `parse_tools` does."""
    functions = [tool.get("function", tool) for tool in parse_tools(chat)]
    return [each.get("name") if isinstance(each, dict) else None for each in functions]


def parse_variables(chat: Chat) -> dict[str, Any]:
    """The further variables of the template. Raises InvalidRequest unless they are a JSON object."""
    given = chat.template_kwargs_json
    return _object("prompt.chat.template_kwargs_json", given) if given else {}


def parse_tool_calls(message: Message, number: int) -> list[dict[str, Any]]:
    """The tool calls of message `number`, as templates read them: with their arguments as objects. Most clients send
    arguments as a string.

    What a model wrote that is no JSON object becomes one that holds its text: the call stays in every later turn, and
    refusing it would end the conversation. Raises InvalidRequest for a call without a name, or with arguments of
    another type.
    """
    field = f"prompt.chat.messages[{number}].tool_calls_json"
    return [_call(f"{field}[{at}]", text) for at, text in enumerate(message.tool_calls_json)]


def _call(field: str, text: str) -> dict[str, Any]:
    call = _object(field, text)
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequest(field, "a call without a name", 'an object with "name", or with "function" that has one')
    arguments = function.get("arguments")
    if arguments is None:
        arguments = {}
    elif isinstance(arguments, str):
        arguments = _arguments(arguments)
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{field}.arguments", "another JSON value", "a JSON object, or its text")
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        value = text
    if value is None:
        return {}
    return value if isinstance(value, dict) else {INVALID_ARGUMENTS: text}


def _object(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # as templates write it; UTF-8 refuses lone surrogates
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, "not JSON", "a JSON object") from error
    if not isinstance(value, dict):
        raise InvalidRequest(field, "another JSON value", "a JSON object")
    return value
