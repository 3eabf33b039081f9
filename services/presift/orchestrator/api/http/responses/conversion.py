"""A body of /v1/responses as one of /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.responses.schema import (
    ITEMS,
    NEUTRAL,
    PARTS,
    WHY,
    WITHOUT_EFFECT,
    CallItem,
    ChosenFunction,
    FunctionTool,
    MessageItem,
    OutputItem,
    ReasoningItem,
    Refusal,
    ResponsesBody,
    TextFormat,
    TextInput,
)
from presift.orchestrator.api.http.schema import Ignored
from presift.orchestrator.api.http.translation import (
    ApiParameters,
    Conversation,
    Origin,
    Translated,
    TranslatedNames,
    kind_of,
    validate_at,
)

PARAMETERS = ApiParameters(ResponsesBody, WITHOUT_EFFECT, NEUTRAL, WHY)

_RENAMED = {
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool_choice.function": "tool_choice",
}
_CHOICES = ("none", "auto", "required")


def chat_from_responses(body: ResponsesBody, given: dict[str, Any], ignored: Ignored) -> Translated:
    """`given` are the caller's parameters, with those that `body` has no fields for. Raises InvalidRequest."""
    conversation = _conversation(body, ignored)
    chat: dict[str, Any] = PARAMETERS.shared(given) | {
        "model": body.model,
        "messages": conversation.messages,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
        "tools": [_tool(tool, f"tools[{at}]", ignored) for at, tool in enumerate(body.tools or ())] or None,
        "tool_choice": _tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _response_format(body.text.format),
        "reasoning_effort": body.reasoning.effort,
        "presift": conversation.presift(body.presift),
    }
    names = TranslatedNames(
        max_new_tokens="max_completion_tokens",
        renamed=_RENAMED,
        list_name="input",
        origins=tuple(conversation.origins),
    )
    return Translated({name: value for name, value in chat.items() if value is not None}, names)


def _conversation(body: ResponsesBody, ignored: Ignored) -> Conversation:
    items = body.items()
    conversation = Conversation("input", len(items))
    if body.instructions:
        conversation.add({"role": "system", "content": body.instructions}, Origin("instructions"))
    for at, item in enumerate(items):
        path = "input" if isinstance(body.input, str) else f"input[{at}]"
        schema = ITEMS[kind_of(item, ITEMS, path, default="message")]
        _add(conversation, validate_at(schema, item, path, ignored), Origin(path, at))
    return conversation


def _add(conversation: Conversation, item: Any, origin: Origin) -> None:
    if isinstance(item, MessageItem):
        _add_message(conversation, item, origin)
    elif isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        _assistant(conversation, origin).setdefault("tool_calls", []).append(call)
    elif isinstance(item, OutputItem):
        parts = _parts(item.output, f"{origin.path}.output")
        if item.document:
            parts = [part | {"document": True} for part in parts]
        message = {"role": "tool", "tool_call_id": item.call_id, "content": parts, "protected": item.protected}
        conversation.add(message, _with_parts(origin, parts))
    elif isinstance(item, ReasoningItem) and (text := _reasoning(item, origin.path)):
        message = _assistant(conversation, origin, is_new=True)
        message["reasoning_content"] = text


def _add_message(conversation: Conversation, item: MessageItem, origin: Origin) -> None:
    parts = _parts(item.content, f"{origin.path}.content")
    origin = _with_parts(origin, parts)
    if item.role != "assistant":
        conversation.add({"role": item.role, "content": parts, "protected": item.protected}, origin)
        return
    # Reasoning and what it led to are one turn.
    last = conversation.messages[-1] if conversation.messages else {}
    if last.get("role") != "assistant" or last.get("content") or last.get("tool_calls"):
        conversation.add({"role": "assistant", "content": parts, "protected": item.protected}, origin)
        return
    last |= {"content": parts, "protected": item.protected}
    conversation.origins[-1] = origin


def _assistant(conversation: Conversation, origin: Origin, *, is_new: bool = False) -> dict[str, Any]:
    """The turn that an item belongs to."""
    if is_new or not conversation.messages or conversation.messages[-1]["role"] != "assistant":
        conversation.add({"role": "assistant", "content": ""}, origin)
    return conversation.messages[-1]


def _with_parts(origin: Origin, parts: list[dict[str, Any]]) -> Origin:
    return Origin(origin.path, origin.number, tuple(range(len(parts))))


def _parts(content: Any, path: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(path, brief(content), "a text, or a list of parts")
    parts = list[dict[str, Any]]()
    for at, part in enumerate(content):
        each = validate_at(PARTS[kind_of(part, PARTS, f"{path}[{at}]")], part, f"{path}[{at}]")
        if isinstance(each, Refusal):
            parts.append({"type": "text", "text": each.refusal})
        elif isinstance(each, TextInput):
            marks = {"protected": each.protected, "document": each.document}
            parts.append({"type": "text", "text": each.text, **marks})
    return parts


def _reasoning(item: ReasoningItem, path: str) -> str:
    texts = [validate_at(TextInput, part, f"{path}.content[{at}]").text for at, part in enumerate(item.content or ())]
    return "".join(texts)


def _tool(tool: dict[str, Any], path: str, ignored: Ignored) -> dict[str, Any]:
    if tool.get("type") != "function":
        limit = "'function': this server has no tools of its own"
        raise InvalidRequest(f"{path}.type", brief(tool.get("type")), limit)
    function = dict(validate_at(FunctionTool, tool, path, ignored))
    mark = function.pop("document")
    kept = {name: value for name, value in function.items() if value is not None and name != "type"}
    return {"type": "function", "function": kept, "document": mark}


def _tool_choice(choice: Any) -> Any:
    if choice is None or choice in _CHOICES:
        return choice
    if not isinstance(choice, dict) or choice.get("type") != "function":
        limit = f"one of {', '.join(_CHOICES)}, or a function by its name"
        value = choice.get("type") if isinstance(choice, dict) else choice
        raise InvalidRequest("tool_choice", brief(value), limit)
    return {"type": "function", "function": {"name": validate_at(ChosenFunction, choice, "tool_choice").name}}


def _response_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None:
        return None
    wanted = validate_at(TextFormat, given, "text.format")
    if wanted.type != "json_schema":
        if wanted.schema_ is not None:
            raise InvalidRequest("text.format.schema", "given", f"left out with type {wanted.type}")
        return {"type": wanted.type}
    if wanted.schema_ is None or wanted.name is None:
        raise InvalidRequest(f"text.format.{'schema' if wanted.name else 'name'}", "missing", "given with json_schema")
    named = {"name": wanted.name, "description": wanted.description, "schema": wanted.schema_, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": {name: each for name, each in named.items() if each is not None}}
