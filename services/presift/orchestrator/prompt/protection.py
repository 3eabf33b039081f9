"""Finds the characters of a rendered chat that a policy may drop; all others are protected.

Droppable are the documents that the caller marked or, without any mark, the texts of unprotected messages. Template
tokens, tool definitions and everything else that the template adds are therefore protected without being recognised.
So is an answer that the caller wants continued.

To find the texts, the chat is rendered once more with a placeholder for each text (the frame). If filling in the texts
does not give the rendered prompt, the template changes texts in an unknown way, and the whole prompt is protected.
Templates cut earlier answers at the tags of their reasoning: the frame keeps these tags, so that it is cut likewise.

This module works on characters; the tokenizer maps them to tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

from presift.orchestrator.domain.request import ROLES, Chat, Message
from presift.orchestrator.prompt.chat_tools import parse_tool_calls

# In characters, about 256 tokens of English. Up to this length, the last user message, or its last part, counts as a
# question and is protected. A longer one contains documents; the policy's window keeps its end.
QUESTION_CHARACTERS = 1024

# Private-use characters, which mean nothing to chat templates.
_PLACEHOLDER = "\ue000{}\ue001"
_PATTERN = re.compile("\ue000(\\d+)\ue001")
# With the white space around them, which templates strip where they cut.
_REASONING_TAGS = re.compile(r"(\s*</?think>\s*)")
# Templates strip no message, every message, or the answers alone.
_STRIPPED_ROLES = (frozenset[str](), frozenset(ROLES), frozenset({"assistant"}))
_OUTER_SPACE = re.compile(r"(^\s+|\s+$)")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The characters `start <= i < end` of the rendered prompt."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one placeholder, as expected in the rendered prompt."""

    text: str
    droppable: bool


def with_placeholders(chat: Chat) -> Chat:
    """The chat with each text replaced by a numbered placeholder. Empty texts stay empty: templates test for that."""
    numbers = count()

    def framed(pieces: list[str]) -> str:
        held = ((text, next(numbers)) if at % 2 == 0 else (text, None) for at, text in enumerate(pieces))
        return "".join(text if number is None or not text else _PLACEHOLDER.format(number) for text, number in held)

    messages = []
    for message in chat.messages:
        parts = tuple(replace(part, text=framed(_cut(message, part.text))) for part in message.parts)
        messages.append(replace(message, parts=parts, reasoning=framed(_OUTER_SPACE.split(message.reasoning))))
    return replace(chat, messages=tuple(messages))


def _cut(message: Message, text: str) -> list[str]:
    """The texts that get a placeholder, with a tag of the reasoning of an earlier answer between each two."""
    return _REASONING_TAGS.split(text) if message.role == "assistant" else [text]


def droppable_ranges(chat: Chat, rendered: str, frame: str) -> tuple[Range, ...]:
    """The characters of `rendered` that a policy may drop, ascending and not overlapping.

    `frame` is the rendering of `with_placeholders(chat)`.
    """
    pieces = _pieces(chat)
    for roles in _STRIPPED_ROLES:
        rebuilt, ranges = _fill(frame, list(chain.from_iterable(_stripped(chat, pieces, roles))))
        if rebuilt == rendered:
            return ranges
    return ()


def template_messages(chat: Chat) -> list[dict[str, Any]]:
    """The messages as chat templates read them, without unset keys. Raises InvalidRequest for invalid tool calls."""
    return [_template_message(message) for message in chat.messages]


def _template_message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
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


def _pieces(chat: Chat) -> list[list[Piece]]:
    """Those of each message, in the order of the placeholders."""
    last, question = len(chat.messages) - 1, _question(chat)
    pieces = []
    for at, message in enumerate(chat.messages):
        is_kept = message.protected or (at == last and chat.continue_final_message)
        found = []
        for number, part in enumerate(message.parts):
            if chat.has_documents:
                is_droppable = part.document and not (part.protected or is_kept)
            else:
                is_droppable = not is_kept and _droppable(message, number, at == question)
            found += [Piece(text, is_droppable) for text in _cut(message, part.text)[::2]]
        is_free = not is_kept and not chat.has_documents
        pieces.append([*found, *(Piece(text, is_free) for text in _OUTER_SPACE.split(message.reasoning)[::2])])
    return pieces


def _question(chat: Chat) -> int:
    """The number of the last user message, -1 without one."""
    return max((at for at, message in enumerate(chat.messages) if message.role == "user"), default=-1)


def _droppable(message: Message, number: int, is_last_user: bool) -> bool:
    part = message.parts[number]
    if part.protected or message.role == "system":
        return False
    if not is_last_user:
        return True
    is_last_part = number == len(message.parts) - 1
    return not (_is_question(message.text) or (is_last_part and number > 0 and _is_question(part.text)))


def _is_question(text: str) -> bool:
    return len(text) <= QUESTION_CHARACTERS


def _stripped(chat: Chat, pieces: Sequence[Sequence[Piece]], roles: frozenset[str]) -> Iterator[Sequence[Piece]]:
    """The pieces as rendered by templates that strip the messages of these roles."""
    for message, each in zip(chat.messages, pieces, strict=True):
        yield _stripped_message(message, each) if message.role in roles else each


def _stripped_message(message: Message, pieces: Sequence[Piece]) -> list[Piece]:
    trimmed = list(pieces)
    last = len(trimmed) - len(_OUTER_SPACE.split(message.reasoning)[::2]) - 1
    if last >= 0:
        trimmed[0] = replace(trimmed[0], text=trimmed[0].text.lstrip())
        trimmed[last] = replace(trimmed[last], text=trimmed[last].text.rstrip())
    return trimmed
