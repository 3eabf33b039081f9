"""Renders chats with the target's chat template."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_texts import all_messages, strings, with_placeholders
from presift.orchestrator.prompt.chat_tools import parse_tools, parse_variables
from presift.orchestrator.prompt.placeholders import Placeholders
from presift.orchestrator.prompt.template_messages import template_messages


class ChatTemplate(Protocol):
    """Renders a chat to the target's prompt format. Raises InvalidRequest."""

    def __call__(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, *, variables: dict[str, Any], continues: bool
    ) -> str:
        """`continues`: the prompt ends with the last message's text, for the answer to continue it."""
        ...


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat with its rendering, `text`. What the template does with parts of the chat shows when it renders the chat
    with `placeholders` for them, which occur neither in the chat nor in `text`."""

    chat: Chat
    text: str
    placeholders: Placeholders
    _render: Callable[[Chat], str]

    @classmethod
    def of(cls, chat: Chat, render: Callable[[Chat], str]) -> RenderedChat:
        """Raises InvalidRequest if the template refuses the chat."""
        text = render(chat)
        return cls(chat, text, Placeholders([text, *strings(chat)]), render)

    def render_again(self, chat: Chat) -> str | None:
        """The rendering of the chat with changes; None if the template refuses them."""
        try:
            return self._render(chat)
        except InvalidRequest:
            return None


class ChatRenderer:
    """Renders chats with `template`. `reads_parts`: it reads a content that is a list of parts."""

    def __init__(self, template: ChatTemplate | None, *, reads_parts: bool = False) -> None:
        self.template = template
        self._reads_parts = reads_parts

    def render(self, chat: Chat) -> RenderedChat:
        """Raises InvalidRequest, with the template's own reason if it refuses the chat."""
        try:
            return RenderedChat.of(chat, self._with_template)
        except InvalidRequest as error:
            raise self._with_reason(error, chat) from error.__cause__

    def samples(self) -> str:
        """Short chats as the template renders them, without those that it refuses. They show its marks."""
        rendered = []
        for messages, tools in ((_CHAT, ()), (_CHAT_WITH_CALLS, ()), (_CHAT_WITH_CALLS, (_TOOL,))):
            with suppress(InvalidRequest):
                rendered.append(self._with_template(Chat(messages, tools)))
        return "\n".join(rendered)

    def _with_template(self, chat: Chat) -> str:
        """Raises InvalidRequest, caused by the template's error if it refuses the chat."""
        if self.template is None:
            raise InvalidRequest("prompt", "chat", "text or token_ids: the target has no chat template")
        messages = template_messages(chat, reads_parts=self._reads_parts)
        tools, variables, continues = parse_tools(chat) or None, parse_variables(chat), chat.continue_final_message
        try:
            return self.template(messages, tools, variables=variables, continues=continues)
        except InvalidRequest:
            # Some templates read lists of parts in users' messages only.
            joined = template_messages(chat)
            if joined != messages:
                with suppress(InvalidRequest):
                    return self.template(joined, tools, variables=variables, continues=continues)
            raise

    def _with_reason(self, error: InvalidRequest, chat: Chat) -> InvalidRequest:
        """The error with the template's own reason, unless that quotes the caller: then the template gives another one
        for placeholders."""
        if error.field != "prompt.chat" or error.__cause__ is None:
            return error
        try:
            self._with_template(with_placeholders(chat, all_messages(chat), Placeholders(strings(chat))))
        except InvalidRequest as other:
            reason = str(error.__cause__)
            if reason and reason == str(other.__cause__):
                return InvalidRequest(error.field, error.value, f"{error.limit}, which says: {reason[:200]}")
        return error


def _message(role: str, **given: Any) -> Message:
    return Message(role, (TextPart("a"),), **given)


_TOOL = '{"type": "function", "function": {"name": "f", "description": "a", "parameters": {"type": "object"}}}'
# Mistral's templates accept only ids of nine characters.
_CALL = '{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"b": "c"}}}'
_CHAT = (_message("user"), _message("assistant"), _message("user"))
_CHAT_WITH_CALLS = (
    _message("user"),
    Message("assistant", (), tool_calls_json=(_CALL,)),
    _message("tool", name="f", tool_call_id="call00001"),
    *_CHAT[1:],
)
