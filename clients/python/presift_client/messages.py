"""From messages as dicts to a Chat. Pure.

A message is {"role": "user", "content": "..."}, or content = [{"text": "...", "document": True}, {"text": "..."}, ...].
Where any part is a document, only documents are dropped from; else "protected" on a part or a message keeps it. A
conversation with tools is replayed as other chat services write it: the assistant's message has "tool_calls" (its
content may be None), each answer is {"role": "tool", "tool_call_id": ..., "name": ..., "content": ...}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from presift.v1 import orchestrator_pb2
from presift_client.errors import invalid_request

ChatMessage = Mapping[str, Any]

_KEYS = ("role", "content", "protected", "tool_calls", "name", "tool_call_id")


def chat_of(messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> orchestrator_pb2.Chat:
    """Raises ValueError for what no message has, InvalidRequest for text that has no UTF-8."""
    return orchestrator_pb2.Chat(
        messages=[_message(f"messages[{number}]", message) for number, message in enumerate(messages)],
        tools_json=[json.dumps(tool) for tool in tools],
    )


def writable(field: str, text: str) -> str:
    """`text`. Raises InvalidRequest where it has no UTF-8: half of a surrogate pair, as from a broken decoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"half a surrogate pair (character {error.start})"
        raise invalid_request(field, where, "Unicode text") from None
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
    )


def _check_message(field: str, message: ChatMessage) -> None:
    if "document" in message:
        raise ValueError(
            f'{field}: "document" belongs on a part: "content": [{{"text": ..., "document": True}}, {{"text": ...}}]'
        )
    unknown = set(message) - set(_KEYS)
    if unknown:
        raise ValueError(f"{field}: a message has {', '.join(_KEYS)}; not {', '.join(sorted(unknown))}")
    if "role" not in message:
        raise ValueError(f"{field} has no role")
    if message.get("content") is None and not message.get("tool_calls"):
        raise ValueError(f"{field} has no content; only a message with tool_calls may have none")


def _part(field: str, part: Mapping[str, Any]) -> orchestrator_pb2.TextPart:
    if part.get("type", "text") != "text":
        raise ValueError(f"{field}: a part is text; not {part['type']!r}")
    unknown = set(part) - {"type", "text", "protected", "document"}
    if unknown:
        raise ValueError(f"{field}: a part has text, protected and document; not {', '.join(sorted(unknown))}")
    marks = {name: bool(part.get(name, False)) for name in ("protected", "document")}
    if all(marks.values()):
        raise ValueError(f"{field}: document and protected say opposite things: what may be dropped, and what may not")
    if "text" not in part:
        raise ValueError(f"{field} has no text")
    return orchestrator_pb2.TextPart(text=writable(f"{field}.text", part["text"]), **marks)
