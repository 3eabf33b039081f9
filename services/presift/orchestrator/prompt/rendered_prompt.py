"""A prompt as the tokenizer reads it: what of it may be dropped, what is protected, and which control tokens it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat
from presift.orchestrator.prompt.chat_frame import ChatFrame, Range, find_texts
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.chat_tools import parse_tool_calls
from presift.orchestrator.prompt.control_tokens import ControlTokens, TemplateTokens
from presift.orchestrator.prompt.protection import droppable_ranges, protected_ranges


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The text of a prompt, its droppable characters, the protected texts with what they are, and warnings on its
    messages. `template_tokens`: its control tokens, where others in it are text."""

    text: str
    droppable: tuple[Range, ...]
    protected: tuple[tuple[str, Range], ...] = ()
    template_tokens: TemplateTokens | None = None
    warnings: tuple[str, ...] = ()


def read_chat(rendered: RenderedChat, control: ControlTokens | None) -> RenderedPrompt:
    """Raises InvalidRequest for tools that the template does not support, for messages that it leaves out, and for
    control tokens that it reads."""
    calls_left_out = _check_tools(rendered)
    frame = find_texts(rendered)
    _check_left_out(rendered.chat, frame)
    return RenderedPrompt(
        rendered.text,
        droppable_ranges(rendered.chat, frame),
        protected_ranges(rendered.chat, frame),
        None if control is None else control.template_tokens(rendered),
        _warnings(rendered.chat, frame, calls_left_out),
    )


def _check_tools(rendered: RenderedChat) -> tuple[int, ...]:
    """The numbers of the messages with calls that the template leaves out, ascending. Raises InvalidRequest if it does
    not support the tools or the tool calls.

    A template that does not support tools silently leaves them out: the rendering without them is the same.
    Placeholders in one more rendering show which calls it leaves out.
    """
    chat = rendered.chat
    if chat.tools_json and rendered.render_again(replace(chat, tools_json=())) == rendered.text:
        value, limit = f"{len(chat.tools_json)} given", "unset: the target's chat template does not support tools"
        raise InvalidRequest("prompt.chat.tools_json", value, limit)
    messages = [at for at, message in enumerate(chat.messages) for _ in message.tool_calls_json]
    shown = _shown_calls(rendered, chat) if messages else set()
    # Some templates show either the text of an answer or its calls.
    if not shown and messages and not _shown_calls(rendered, _without_texts(chat)):
        value, limit = f"{len(messages)} given", "unset: the target's chat template does not support tool calls"
        if chat.continue_final_message and set(messages) == {len(chat.messages) - 1}:
            limit = "unset in a message to continue: the text ends where the calls would begin"
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


def _check_left_out(chat: Chat, frame: ChatFrame) -> None:
    """Raises InvalidRequest for a message that the template leaves out, except for an answer: of that, templates may
    leave out the text, for example beside tool calls."""
    lost = [at for at in frame.left_out if chat.messages[at].role != "assistant"]
    if lost:
        message = chat.messages[lost[0]]
        way = "it out, or a part of it: send one text" if len(message.parts) > 1 else "it out"
        value, limit = f"role {message.role}", f"a message that the chat template shows: it leaves {way}"
        raise InvalidRequest(f"prompt.chat.messages[{lost[0]}]", value, limit)


def _warnings(chat: Chat, frame: ChatFrame, calls_left_out: Sequence[int]) -> tuple[str, ...]:
    """What the template did with messages that the caller may not expect."""
    messages = len(chat.messages)
    rewritten = [at for at in frame.rewritten if at >= messages or chat.messages[at].role != "system"]
    warnings = []
    if rewritten:
        warnings.append(f"the chat template rewrites {_listed(rewritten, messages)}: nothing of that is dropped")
    if frame.left_out:
        warnings.append(f"the chat template leaves out the text of {_listed(frame.left_out, messages)}")
    if calls_left_out:
        warnings.append(f"the chat template leaves out tool calls of {_listed(calls_left_out, messages)}")
    return tuple(warnings)


def _listed(places: Sequence[int], messages: int, most: int = 8) -> str:
    """The first `most` of `places` as the caller's fields: those beyond the number of `messages` are tools."""
    more = f" and {len(places) - most} more" if len(places) > most else ""
    names = (f"messages[{at}]" if at < messages else f"tools[{at - messages}]" for at in places[:most])
    return ", ".join(names) + more
