"""Builds a Chat from messages given as dicts. Pure.

A message is {"role": "user", "content": "..."}, or content = [{"text": "...", "document": True}, {"text": "..."}, ...].
If any part is a document, only documents may be dropped; otherwise "protected" on a part or a message keeps it. Tool
calls have the form of other chat services: the assistant's message has "tool_calls" (its content may be None), and each
result is {"role": "tool", "tool_call_id": ..., "name": ..., "content": ...}. What a reasoning model wrote before its
answer is the assistant's "reasoning".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from presift.v1 import orchestrator_pb2
from presift_client.errors import invalid_request

ChatMessage = Mapping[str, Any]

_KEYS = ("role", "content", "protected", "tool_calls", "name", "tool_call_id", "reasoning")


def chat_of(messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> orchestrator_pb2.Chat:
    """Raises ValueError for a malformed message, InvalidRequest for text that is not valid Unicode."""
    return orchestrator_pb2.Chat(
        messages=[_message(f"messages[{number}]", message) for number, message in enumerate(messages)],
        tools_json=[json.dumps(tool) for tool in tools],
    )


def writable(field: str, text: str) -> str:
    """`text` unchanged. Raises InvalidRequest for an unpaired surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"text with an unpaired surrogate (character {error.start})"
        raise invalid_request(field, found, "valid Unicode text") from None
    return text


def _message(field: str, message: ChatMessage) -> orchestrator_pb2.Message:
    _check_message(field, message)
    content = message.get("content") or ""
    parts = [{"text": content}] if isinstance(content, str) else content
    return orchestrator_pb2.Message(
        role=writable(f"{field}.role", message["role"]),
        parts=[_part(f"{field}.content[{number}]", part) for number, part in enumerate(parts)],
        protected=bool(message.get("protected", False)),
        tool_calls_json=[json.dumps(call) for call in message.get("tool_calls") or ()],
        name=writable(f"{field}.name", message.get("name") or ""),
        tool_call_id=writable(f"{field}.tool_call_id", message.get("tool_call_id") or ""),
        reasoning=writable(f"{field}.reasoning", message.get("reasoning") or ""),
    )


def _check_message(field: str, message: ChatMessage) -> None:
    if "document" in message:
        raise ValueError(
            f'{field}: "document" marks a part, not a message: "content": [{{"text": ..., "document": True}}, ...]'
        )
    unknown = set(message) - set(_KEYS)
    if unknown:
        raise ValueError(f"{field}: unknown key {', '.join(sorted(unknown))}; a message has {', '.join(_KEYS)}")
    if "role" not in message:
        raise ValueError(f"{field} has no role")
    if message.get("content") is None and not message.get("tool_calls"):
        raise ValueError(f"{field} has no content; only a message with tool_calls may omit it")


def _part(field: str, part: Mapping[str, Any]) -> orchestrator_pb2.TextPart:
    if part.get("type", "text") != "text":
        raise ValueError(f"{field}: type is {part['type']!r}; it must be 'text'")
    unknown = set(part) - {"type", "text", "protected", "document"}
    if unknown:
        raise ValueError(f"{field}: unknown key {', '.join(sorted(unknown))}; a part has text, protected, document")
    marks = {name: bool(part.get(name, False)) for name in ("protected", "document")}
    if all(marks.values()):
        raise ValueError(f"{field}: document (may be dropped) and protected (may not) exclude each other")
    if "text" not in part:
        raise ValueError(f"{field} has no text")
    return orchestrator_pb2.TextPart(text=writable(f"{field}.text", part["text"]), **marks)
