"""Protection: which characters of a rendered chat a policy may drop.

Everything is protected except the documents that the caller marked or, where none is marked, the texts of unprotected
messages: so template tokens, tool definitions and whatever the template adds are safe without being recognised. The
texts are found by rendering the chat once more with a placeholder for each (the frame); where putting the texts back
does not give the rendered prompt, the template did something we do not understand and the whole prompt is protected.
Knows characters; the tokenizer maps them to tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from presift.orchestrator.domain.request import Chat, Message
from presift.orchestrator.prompt.chat_tools import calls_of

# A last user turn, or its last part, up to this long is a question, protected whole; a longer one holds documents, of
# which the window keeps the end. In characters, about 256 tokens of English.
QUESTION_CHARACTERS = 1024

# Private-use characters: no chat template gives them a meaning.
_PLACEHOLDER = "\ue000{}\ue001"
_PATTERN = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The characters `start <= i < end` of the rendered prompt."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of one message, as it may stand in the rendered prompt."""

    text: str
    droppable: bool


def framed(chat: Chat) -> Chat:
    """The chat with each part's text replaced by a numbered placeholder. What is empty stays so: templates ask."""
    messages, number = [], 0
    for message in chat.messages:
        parts = []
        for part in message.parts:
            parts.append(replace(part, text=_PLACEHOLDER.format(number) if part.text else ""))
            number += 1
        messages.append(replace(message, parts=tuple(parts)))
    return replace(chat, messages=tuple(messages))


def compressible(chat: Chat, rendered: str, frame: str) -> tuple[Range, ...]:
    """The characters of `rendered` that a policy may drop: ascending, not overlapping.

    `frame` is the rendering of `framed(chat)`.
    """
    pieces = _pieces(chat)
    for candidate in (pieces, _stripped(chat, pieces)):
        rebuilt, ranges = _fill(frame, candidate)
        if rebuilt == rendered:
            return ranges
    return ()


def template_messages(chat: Chat) -> list[dict[str, Any]]:
    """The messages as chat templates read them: what is not set is not there. Raises InvalidRequest for tool calls that
    are none."""
    return [_template_message(message) for message in chat.messages]


def _template_message(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls_json:
        made["tool_calls"] = calls_of(message)
    return made | {name: value for name in ("name", "tool_call_id") if (value := getattr(message, name))}


def _fill(frame: str, pieces: Sequence[Piece]) -> tuple[str, tuple[Range, ...]]:
    """The frame with the pieces in place, and where the droppable ones came to lie."""
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
    closes = number == len(message.parts) - 1
    return not (_is_question(message.text) or (closes and number > 0 and _is_question(part.text)))


def _is_question(text: str) -> bool:
    return len(text) <= QUESTION_CHARACTERS


def _stripped(chat: Chat, pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces as templates that trim each message render them."""
    trimmed, each = [], iter(pieces)
    for message in chat.messages:
        last = len(message.parts) - 1
        for number in range(len(message.parts)):
            piece = next(each)
            text = piece.text.lstrip() if number == 0 else piece.text
            trimmed.append(Piece(text.rstrip() if number == last else text, piece.droppable))
    return trimmed
