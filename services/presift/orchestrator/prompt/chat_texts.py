"""The texts of a chat that a policy may drop: those of its messages, and descriptions of tools marked as documents.

Tools count as further messages here: their numbers follow those of the messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from presift.orchestrator.domain.request import Chat, Message
from presift.orchestrator.prompt.chat_tools import descriptions, parse_tools, with_descriptions
from presift.orchestrator.prompt.placeholders import Placeholders

# Kimi's and Mistral's are the last two. No white space: looking for it would take a time quadratic in its length.
REASONING_TAGS = re.compile(r"(</?(?:think|thinking|thought|seed:think)>|◁/?think▷|\[/?THINK\])")


@dataclass(frozen=True, slots=True)
class ChatText:
    """A text of a message: one of its part number `part`, or of its reasoning or description (None). `is_first`,
    `is_last`: of its content only white space is before or after it, so that templates strip it; `..._of_part`: it
    begins or ends its part. `is_answer`: templates should show it; they may leave out reasoning."""

    message: int
    part: int | None
    text: str
    is_first: bool = False
    is_last: bool = False
    is_first_of_part: bool = False
    is_last_of_part: bool = False
    is_answer: bool = False


def strings(chat: Chat) -> list[str]:
    """All strings of the caller but the roles."""
    of_messages = (text for message in chat.messages for text in message_strings(message))
    return [chat.template_kwargs_json, *chat.tools_json, *of_messages]


def message_strings(message: Message) -> list[str]:
    texts = (part.text for part in message.parts)
    return [*texts, message.reasoning, *message.tool_calls_json, message.name, message.tool_call_id]


def chat_texts(chat: Chat) -> list[ChatText]:
    """In the order of their numbers, which their placeholders have."""
    found = []
    for at, message in enumerate(chat.messages):
        *contents, reasoning = _split_message(message)
        texts = [
            (part, number, text, number == len(pieces) // 2)
            for part, pieces in enumerate(contents)
            for number, text in enumerate(pieces[::2])
        ]
        # The answer begins behind the last tag: all but the first text of a part follow one.
        answer = max((place for place, (_, number, _, _) in enumerate(texts) if number), default=0)
        # Without a filled text all of them are at both ends.
        filled = [place for place, (_, _, text, _) in enumerate(texts) if text.strip()] or [len(texts), -1]
        found += [
            ChatText(at, part, text, place <= filled[0], place >= filled[-1], number == 0, ends_part, place >= answer)
            for place, (part, number, text, ends_part) in enumerate(texts)
        ]
        found += [ChatText(at, None, text) for text in reasoning[::2]]
    for at, tool in _document_tools(chat):
        found += [ChatText(at, None, text) for text in descriptions(tool)]
    return found


def with_placeholders(chat: Chat, messages: frozenset[int], placeholders: Placeholders) -> Chat:
    """The chat with a placeholder for each text of these messages. Empty texts stay empty: templates test for that."""
    numbers = count()

    def replaced(pieces: Sequence[str], is_placed: bool) -> str:
        # Texts at even places are numbered, also where they are not replaced; the others stay.
        result = list(pieces)
        for at in range(0, len(pieces), 2):
            number = next(numbers)
            if is_placed and pieces[at]:
                result[at] = placeholders.write(number)
        return "".join(result)

    made = []
    for at, message in enumerate(chat.messages):
        *contents, reasoning = (replaced(pieces, at in messages) for pieces in _split_message(message))
        parts = tuple(replace(part, text=text) for part, text in zip(message.parts, contents, strict=True))
        made.append(replace(message, parts=parts, reasoning=reasoning))
    tools = list(chat.tools_json)
    for at, tool in _document_tools(chat):
        texts = (replaced([text], at in messages) for text in descriptions(tool))
        tools[at - len(chat.messages)] = json.dumps(with_descriptions(tool, texts))
    return replace(chat, messages=tuple(made), tools_json=tuple(tools))


def all_messages(chat: Chat) -> frozenset[int]:
    """The numbers of the messages, and of the tools that are marked as documents."""
    return frozenset(range(len(chat.messages))) | {at for at, _ in _document_tools(chat)}


def filled_messages(chat: Chat) -> list[int]:
    """Those of `all_messages` with a text that is not blank, ascending. Templates test for blank ones, and nothing of
    them needs to be dropped."""
    messages = [at for at, each in enumerate(chat.messages) if f"{each.text}{each.reasoning}".strip()]
    return messages + [at for at, tool in _document_tools(chat) if any(map(str.strip, descriptions(tool)))]


def _document_tools(chat: Chat) -> list[tuple[int, Any]]:
    """The tools that are marked as documents, with the numbers that they have as further messages."""
    if not chat.document_tools:
        return []
    tools = parse_tools(chat)
    return [(len(chat.messages) + number, tools[number]) for number in sorted(chat.document_tools)]


def _split_message(message: Message) -> list[list[str]]:
    """The text of each part, then the reasoning, each in pieces: texts at even places, and between them what gets no
    placeholder."""
    is_answer = message.role == "assistant"
    contents = [_split_at_tags(part.text) if is_answer else [part.text] for part in message.parts]
    before, rest = _leading_space(message.reasoning)
    return [*contents, ["", before, *_trailing_space(rest), ""]]


def _split_at_tags(text: str) -> list[str]:
    """In pieces as `_split_message` has them: texts, and tags with the white space around them, which templates strip
    where they cut."""
    pieces = REASONING_TAGS.split(text)
    for at in range(1, len(pieces), 2):
        (first, before), (after, last) = _trailing_space(pieces[at - 1]), _leading_space(pieces[at + 1])
        pieces[at - 1 : at + 2] = [first, before + pieces[at] + after, last]
    return pieces


def _leading_space(text: str) -> tuple[str, str]:
    """The white space at the start, and the rest."""
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest


def _trailing_space(text: str) -> tuple[str, str]:
    """All but the white space at the end, and this white space."""
    rest = text.rstrip()
    return rest, text[len(rest) :]
