"""Finds the characters of a rendered chat that a policy may drop; all others are protected.

Droppable are the documents that the caller marked or, without any mark, the texts of unprotected messages. Template
tokens, tool definitions and everything else that the template adds are therefore protected without being recognised.

To find the texts, the chat is rendered once more with a placeholder for each text (the frame). If filling in the texts
does not give the rendered prompt, the template changes texts in an unknown way, and the whole prompt is protected.

This module works on characters; the tokenizer maps them to tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from presift.orchestrator.domain.request import Chat, Message
from presift.orchestrator.prompt.chat_tools import parse_tool_calls

# In characters, about 256 tokens of English. Up to this length, the last user message, or its last part, counts as a
# question and is protected. A longer one contains documents; the policy's window keeps its end.
QUESTION_CHARACTERS = 1024

# Private-use characters, which mean nothing to chat templates.
_PLACEHOLDER = "\ue000{}\ue001"
_PATTERN = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The characters `start <= i < end` of the rendered prompt."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one part of a message, as expected in the rendered prompt."""

    text: str
    droppable: bool


def with_placeholders(chat: Chat) -> Chat:
    """The chat with each text replaced by a numbered placeholder. Empty texts stay empty: templates test for that."""
    messages, number = [], 0
    for message in chat.messages:
        parts = []
        for part in message.parts:
            parts.append(replace(part, text=_PLACEHOLDER.format(number) if part.text else ""))
            number += 1
        messages.append(replace(message, parts=tuple(parts)))
    return replace(chat, messages=tuple(messages))


def droppable_ranges(chat: Chat, rendered: str, frame: str) -> tuple[Range, ...]:
    """The characters of `rendered` that a policy may drop, ascending and not overlapping.

    `frame` is the rendering of `with_placeholders(chat)`.
    """
    pieces = _pieces(chat)
    for candidate in (pieces, _stripped(chat, pieces)):
        rebuilt, ranges = _fill(frame, candidate)
        if rebuilt == rendered:
            return ranges
    return ()


def template_messages(chat: Chat) -> list[dict[str, Any]]:
    """The messages as chat templates read them, without unset keys. Raises InvalidRequest for invalid tool calls."""
    return [_template_message(message) for message in chat.messages]


def _template_message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls_json:
        fields["tool_calls"] = parse_tool_calls(message)
    return fields | {name: value for name in ("name", "tool_call_id") if (value := getattr(message, name))}


def _fill(frame: str, pieces: Sequence[Piece]) -> tuple[str, tuple[Range, ...]]:
    """The frame with the pieces filled in, and the ranges of the droppable ones."""
    out, ranges, length, cursor = [], [], 0, 0
    for match in _PATTERN.finditer(frame):
        number = int(match[1])
        if number >= len(pieces):
            return "", ()
        piece = pieces[number]
        start = length + match.start() - cursor
        length = start + len(piece.text)
        out += [frame[cursor : match.start()], piece.text]
        cursor = match.end()
        if piece.droppable and piece.text:
            ranges.append(Range(start, length))
    return "".join([*out, frame[cursor:]]), tuple(ranges)


def _pieces(chat: Chat) -> list[Piece]:
    if chat.has_documents:
        return [
            Piece(part.text, part.document and not (part.protected or message.protected))
            for message in chat.messages
            for part in message.parts
        ]
    question = max((at for at, message in enumerate(chat.messages) if message.role == "user"), default=-1)
    return [
        Piece(part.text, _droppable(message, number, at == question))
        for at, message in enumerate(chat.messages)
        for number, part in enumerate(message.parts)
    ]


def _droppable(message: Message, number: int, is_last_user: bool) -> bool:
    part = message.parts[number]
    if message.protected or part.protected or message.role == "system":
        return False
    if not is_last_user:
        return True
    is_last_part = number == len(message.parts) - 1
    return not (_is_question(message.text) or (is_last_part and number > 0 and _is_question(part.text)))


def _is_question(text: str) -> bool:
    return len(text) <= QUESTION_CHARACTERS


def _stripped(chat: Chat, pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces as rendered by templates that strip each message."""
    trimmed, each = [], iter(pieces)
    for message in chat.messages:
        last = len(message.parts) - 1
        for number in range(len(message.parts)):
            piece = next(each)
            text = piece.text.lstrip() if number == 0 else piece.text
            trimmed.append(Piece(text.rstrip() if number == last else text, piece.droppable))
    return trimmed
