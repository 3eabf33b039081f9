"""The messages of a chat as chat templates read them."""

from __future__ import annotations

from typing import Any

from presift.orchestrator.domain.request import Chat, Message
from presift.orchestrator.prompt.chat_tools import parse_tool_calls


def template_messages(chat: Chat, *, reads_parts: bool = False) -> list[dict[str, Any]]:
    """The messages, without unset keys. `reads_parts`: the template reads a content that is a list of parts.

    Raises InvalidRequest for invalid tool calls.
    """
    return [_template_message(chat, at, reads_parts) for at in range(len(chat.messages))]


def _template_message(chat: Chat, number: int, reads_parts: bool) -> dict[str, Any]:
    message = chat.messages[number]
    fields: dict[str, Any] = {"role": message.role, "content": _content(message, chat.separate_parts, reads_parts)}
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls_json:
        fields["tool_calls"] = parse_tool_calls(message, number)
    return fields | {name: value for name in ("name", "tool_call_id") if (value := getattr(message, name))}


def _content(message: Message, separate_parts: bool, reads_parts: bool) -> str | list[dict[str, str]]:
    """Separate parts stay a list if the template reads one; else a space joins them, as in SGLang's server."""
    if not separate_parts or len(message.parts) < 2:
        return message.text
    texts = [part.text for part in message.parts]
    return [{"type": "text", "text": text} for text in texts] if reads_parts else " ".join(texts)
