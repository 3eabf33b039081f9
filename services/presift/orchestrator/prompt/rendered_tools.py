"""Checks that the chat template shows the tools and the tool calls of a chat.

A template that does not support tools would silently leave them out of the prompt. So the chat is rendered once more
without them, and refused if the result is the same. Placeholders in one more rendering show which calls it leaves out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.chat_tools import parse_tool_calls


def check_tools(rendered: RenderedChat) -> tuple[int, ...]:
    """The numbers of the messages with calls that the template leaves out, ascending. Raises InvalidRequest if it does
    not support the tools or the tool calls."""
    chat = rendered.chat
    if chat.tools_json and rendered.render_again(replace(chat, tools_json=())) == rendered.text:
        value, limit = f"{len(chat.tools_json)} given", "unset: the target's chat template does not support tools"
        raise InvalidRequest("prompt.chat.tools_json", value, limit)
    messages = [at for at, message in enumerate(chat.messages) for _ in message.tool_calls_json]
    shown = _shown_calls(rendered, chat) if messages else set()
    # Some templates show either the text of an answer or its calls.
    if not shown and messages and not _shown_calls(rendered, _without_texts(chat)):
        value, limit = f"{len(messages)} given", "unset: the target's chat template does not support tool calls"
        raise InvalidRequest(f"prompt.chat.messages[{messages[0]}].tool_calls_json", value, limit)
    return tuple(dict.fromkeys(at for number, at in enumerate(messages) if number not in shown))


def _shown_calls(rendered: RenderedChat, chat: Chat) -> set[int]:
    """The numbers of the calls of `chat` that the template shows: a placeholder stands for name, id and arguments. All,
    if it refuses placeholders."""
    numbers, messages = count(), []
    for at, message in enumerate(chat.messages):
        calls = []
        for call in parse_tool_calls(message, at):
            placeholder = rendered.placeholders.write(next(numbers))
            function = call.get("function", call) | {"name": placeholder, "arguments": {placeholder: placeholder}}
            changed = call | {"function": function} if "function" in call else function
            calls.append(json.dumps(changed | {"id": placeholder}))
        messages.append(replace(message, tool_calls_json=tuple(calls)))
    again = rendered.render_again(replace(chat, messages=tuple(messages)))
    return set(range(next(numbers))) if again is None else rendered.placeholders.numbers(again)


def _without_texts(chat: Chat) -> Chat:
    messages = (replace(each, parts=()) if each.tool_calls_json else each for each in chat.messages)
    return replace(chat, messages=tuple(messages))
