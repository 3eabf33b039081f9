"""A body of /v1/messages as one of /v1/chat/completions."""

from __future__ import annotations

import json
from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.messages.schema import (
    ASSISTANT_BLOCKS,
    NEUTRAL,
    TEXTS,
    USER_BLOCKS,
    WHY,
    WITHOUT_EFFECT,
    CountBody,
    InputMessage,
    MessagesBody,
    TextBlock,
    Thinking,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolUseBlock,
)
from presift.orchestrator.api.http.schema import Ignored
from presift.orchestrator.api.http.thinking import NO_VARIABLE, can_turn_on, knows_thinking
from presift.orchestrator.api.http.translation import (
    ApiParameters,
    Conversation,
    Origin,
    Translated,
    TranslatedNames,
    kind_of,
    validate_at,
)

PARAMETERS = ApiParameters(MessagesBody, WITHOUT_EFFECT, NEUTRAL, WHY)
_RENAMED = {
    "chat_template_kwargs": "thinking",
    "enable_thinking": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "output_config.effort",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "tool_choice.function": "tool_choice",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_from_messages(
    body: CountBody, given: dict[str, Any], ignored: Ignored, template: frozenset[str]
) -> Translated:
    """`given` are the caller's parameters, with those that `body` has no fields for; `template`: the variables that the
    target's chat template reads. Raises InvalidRequest."""
    conversation = _conversation(body, ignored)
    chat: dict[str, Any] = PARAMETERS.shared(given) | {
        "model": body.model,
        "messages": conversation.messages,
        "tools": [_tool(tool, f"tools[{at}]", ignored) for at, tool in enumerate(body.tools or ())] or None,
        **_tool_choice(body.tool_choice),
        "enable_thinking": _thinking(body, ignored, template),
        "reasoning_effort": _effort(body, ignored, template),
        "response_format": _response_format(body),
        # Anthropic's models continue an assistant's message at the end.
        "continue_final_message": _continues(conversation),
        "presift": conversation.presift(body.presift),
    }
    if isinstance(body, MessagesBody):
        chat |= {
            "max_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "stream": body.stream,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
        }
    renamed = {name: own for name, own in _RENAMED.items() if given.get(name) is None}
    names = TranslatedNames(renamed=renamed, origins=tuple(conversation.origins))
    return Translated({name: value for name, value in chat.items() if value is not None}, names)


def _conversation(body: CountBody, ignored: Ignored) -> Conversation:
    conversation = Conversation("messages", len(body.messages))
    if body.system:
        parts = _texts(body.system, "system", ignored)
        conversation.add({"role": "system", "content": parts}, Origin("system"))
    for at, given in enumerate(body.messages):
        path = f"messages[{at}]"
        message = validate_at(InputMessage, given, path, ignored)
        kinds = ASSISTANT_BLOCKS if message.role == "assistant" else USER_BLOCKS
        blocks = _blocks(message.content, kinds, f"{path}.content", ignored)
        if message.role == "assistant":
            _add_assistant(conversation, message, blocks, Origin(path, at))
        else:
            _add_other(conversation, message, blocks, at, ignored)
    return conversation


def _add_assistant(conversation: Conversation, message: InputMessage, blocks: list[Any], origin: Origin) -> None:
    texts = [(at, block) for at, block in enumerate(blocks) if isinstance(block, TextBlock)]
    chat = {"role": "assistant", "content": [_part(block) for _, block in texts], "protected": message.protected}
    if reasoning := "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock)):
        chat["reasoning_content"] = reasoning
    if calls := [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]:
        chat["tool_calls"] = calls
    conversation.add(chat, Origin(origin.path, origin.number, tuple(at for at, _ in texts)))


def _add_other(
    conversation: Conversation, message: InputMessage, blocks: list[Any], number: int, ignored: Ignored
) -> None:
    """A user's message: its texts and the results of tools as messages of their own, in order."""
    path, texts = f"messages[{number}]", list[tuple[int, TextBlock]]()

    def add_texts() -> None:
        if texts:
            parts, places = [_part(block) for _, block in texts], tuple(at for at, _ in texts)
            chat = {"role": message.role, "content": parts, "protected": message.protected}
            conversation.add(chat, Origin(path, number, places))
            texts.clear()

    for at, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            texts.append((at, block))
            continue
        add_texts()
        place = f"{path}.content[{at}]"
        parts = _texts("" if block.content is None else block.content, f"{place}.content", ignored)
        marks = {"protected": block.protected, "document": block.document}
        content = [part | {name: True for name, value in marks.items() if value} for part in parts]
        chat = {"role": "tool", "tool_call_id": block.tool_use_id, "content": content, "protected": message.protected}
        conversation.add(chat, Origin(place, number, (at,) * len(parts)))
    add_texts()


def _blocks(content: Any, kinds: dict[str, Any], path: str, ignored: Ignored) -> list[Any]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(path, brief(content), "a text, or a list of blocks")
    places = [(block, f"{path}[{at}]") for at, block in enumerate(content)]
    return [validate_at(kinds[kind_of(block, kinds, place)], block, place, ignored) for block, place in places]


def _texts(content: Any, path: str, ignored: Ignored) -> list[dict[str, Any]]:
    return [_part(block) for block in _blocks(content, TEXTS, path, ignored)]


def _part(block: TextBlock) -> dict[str, Any]:
    return {"type": "text", "text": block.text, "protected": block.protected, "document": block.document}


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": json.dumps(block.input)}
    return {"id": block.id, "type": "function", "function": function}


def _tool(tool: dict[str, Any], path: str, ignored: Ignored) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        limit = "'custom', or left out: this server has no tools of its own"
        raise InvalidRequest(f"{path}.type", brief(tool["type"]), limit)
    each = validate_at(Tool, tool, path, ignored)
    function: dict[str, Any] = {"name": each.name, "description": each.description}
    function |= {"parameters": each.input_schema, "strict": each.strict}
    given = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": given, "document": each.document}


def _tool_choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if (choice.type == "tool") != (choice.name is not None):
        value = "missing" if choice.name is None else "given"
        raise InvalidRequest("tool_choice.name", value, "given with type 'tool', and only then")
    named = {"type": "function", "function": {"name": choice.name}}
    parallel = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    return {"tool_choice": _CHOICES.get(choice.type, named), **parallel}


def _thinking(body: CountBody, ignored: Ignored, template: frozenset[str]) -> bool | None:
    thinking: Thinking | None = body.thinking
    if thinking is None:
        return None
    if thinking.display == "omitted":
        limit = "left out, or summarized: this server shows thinking as it is"
        raise InvalidRequest("thinking.display", "'omitted'", limit)
    if (thinking.type == "enabled") != (thinking.budget_tokens is not None):
        value = "missing" if thinking.budget_tokens is None else thinking.budget_tokens
        raise InvalidRequest("thinking.budget_tokens", value, "given with type 'enabled', and only then")
    if isinstance(body, MessagesBody) and (thinking.budget_tokens or 0) >= body.max_tokens:
        raise InvalidRequest("thinking.budget_tokens", thinking.budget_tokens, f"< max_tokens ({body.max_tokens})")
    if thinking.type == "adaptive" and not knows_thinking(template):
        ignored["thinking"] = None  # it leaves to the model whether it thinks
        return None
    if thinking.type == "enabled" and not can_turn_on(template, body.output_config.effort):
        raise InvalidRequest("thinking.type", brief(thinking.type), NO_VARIABLE)
    return thinking.type != "disabled"


def _effort(body: CountBody, ignored: Ignored, template: frozenset[str]) -> str | None:
    """The effort, without the API's default where the template can do nothing with it."""
    effort = body.output_config.effort
    if effort == "high" and body.thinking is None and not can_turn_on(template, effort):
        ignored["output_config.effort"] = None
        return None
    return effort


def _response_format(body: CountBody) -> dict[str, Any] | None:
    wanted = body.output_config.format or body.output_format
    if wanted is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.schema_}}


def _continues(conversation: Conversation) -> bool | None:
    last = conversation.messages[-1]
    return True if last["role"] == "assistant" and not last.get("tool_calls") else None
