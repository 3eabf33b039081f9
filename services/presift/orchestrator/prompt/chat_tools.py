"""Tool definitions, tool calls and further variables of a chat: from JSON to the objects that chat templates read.

A template that does not support tools would silently leave them out of the prompt. So the chat is rendered once more
without them, and refused if the result is the same. Placeholders in one more rendering show which calls it leaves out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message

# The one key of the arguments of a call that a model wrote wrongly.
INVALID_ARGUMENTS = "invalid_arguments"
# Private-use characters, which mean nothing to chat templates; nine in all, as Mistral's templates want of an id.
_PLACEHOLDER = "\ue000{:07}\ue001"
_PATTERN = re.compile(r"(?:\ue000|\\ue000)(\d{7,})(?:\ue001|\\ue001)")


def parse_tools(chat: Chat) -> list[Any]:
    """The tool definitions. Raises InvalidRequest for one that is not a JSON object."""
    return [_object(f"prompt.chat.tools_json[{number}]", text) for number, text in enumerate(chat.tools_json)]


def without_marks(tools_json: Sequence[str]) -> tuple[tuple[str, ...], frozenset[int]]:
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


def parse_tool_calls(message: Message) -> list[dict[str, Any]]:
    """The tool calls, with their arguments as objects, as templates read them. Most clients send arguments as a string.

    What a model wrote that is no JSON object becomes one that holds its text: the call stays in every later turn, and
    refusing it would end the conversation. Raises InvalidRequest for a call without a name, or with arguments of
    another type.
    """
    return [_call(text) for text in message.tool_calls_json]


def check_tools_rendered(chat: Chat, rendered: str, render: Callable[[Chat], str]) -> tuple[int, ...]:
    """The numbers of the messages with calls that the template leaves out, ascending. Raises InvalidRequest if it does
    not support the tools or the tool calls of `chat`, whose rendering is `rendered`."""
    if chat.tools_json and _try(render, replace(chat, tools_json=())) == rendered:
        value, limit = f"{len(chat.tools_json)} given", "unset: the target's chat template does not support tools"
        raise InvalidRequest("prompt.chat.tools_json", value, limit)
    messages = [at for at, message in enumerate(chat.messages) for _ in message.tool_calls_json]
    shown = _shown_calls(chat, render) if messages else set()
    # Some templates show either the text of an answer or its calls.
    if not shown and messages and not _shown_calls(_without_texts(chat), render):
        value, limit = f"{len(messages)} given", "unset: the target's chat template does not support tool calls"
        raise InvalidRequest("prompt.chat.messages.tool_calls_json", value, limit)
    return tuple(dict.fromkeys(at for number, at in enumerate(messages) if number not in shown))


def _shown_calls(chat: Chat, render: Callable[[Chat], str]) -> set[int]:
    """The numbers of the calls that the template shows: a placeholder stands for name, id and arguments. All, if it
    refuses placeholders."""
    numbers, messages = count(), []
    for message in chat.messages:
        calls = tuple(_with_placeholder(text, next(numbers)) for text in message.tool_calls_json)
        messages.append(replace(message, tool_calls_json=calls))
    rendered = _try(render, replace(chat, messages=tuple(messages)))
    return set(range(next(numbers))) if rendered is None else {int(each[1]) for each in _PATTERN.finditer(rendered)}


def _with_placeholder(text: str, number: int) -> str:
    placeholder = _PLACEHOLDER.format(number)
    call = _call(text)
    function = call.get("function", call) | {"name": placeholder, "arguments": {placeholder: placeholder}}
    return json.dumps((call | {"function": function} if "function" in call else function) | {"id": placeholder})


def _try(render: Callable[[Chat], str], chat: Chat) -> str | None:
    try:
        return render(chat)
    except InvalidRequest:  # the template requires what was left out, so it supports it
        return None


def _without_texts(chat: Chat) -> Chat:
    messages = (replace(each, parts=()) if each.tool_calls_json else each for each in chat.messages)
    return replace(chat, messages=tuple(messages))


def _call(text: str) -> dict[str, Any]:
    field = "prompt.chat.messages.tool_calls_json"
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
