"""Finds the caller's texts in a rendered chat.

The chat is rendered once more with a placeholder for each text (the frame). Where a placeholder stands, the rendered
prompt has the text: as it is, stripped, or as a JSON string. Whatever the template adds is found too, as the rest.

A template may rewrite a message in another way, for example cut it at a mark. Then the frame keeps the texts of this
message, so that the template treats them alike in both; they count as added by the template. Which messages these are
is found by halving. Templates of reasoning models cut earlier answers at the tags of their reasoning: these tags, and
the white space around them, always stay in the frame.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby
from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message
from presift.orchestrator.prompt.chat_tools import descriptions, parse_tools, with_descriptions

# Renderings to find the messages that a template rewrites, and their characters in all. Messages not yet tried by then
# count as rewritten.
MAX_RENDERINGS = 32
MAX_RENDERED_CHARACTERS = 1 << 25

# Private-use characters, which mean nothing to chat templates.
_PLACEHOLDER = "\ue000{}\ue001"
_PATTERN = re.compile("\ue000(\\d+)\ue001")
# Kimi's and Mistral's are the last two. No white space: looking for it would take a time quadratic in its length.
REASONING_TAGS = re.compile(r"(</?(?:think|thinking|thought|seed:think)>|◁/?think▷|\[/?THINK\])")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The characters `start <= i < end` of the rendered prompt."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FoundText:
    """Where a text of a message stands: one of its part number `part`, or of its reasoning (None). The tools count as
    further messages; their texts are the descriptions of those that are marked as documents."""

    message: int
    part: int | None
    range: Range


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """The texts found in a rendered chat, in its order; a template may repeat a text. `rewritten` and `left_out`: the
    messages that the template rewrites, and those that it leaves out, ascending. An answer is left out if nothing of it
    is shown, any other message if one of its parts is not. Tools count as further messages."""

    texts: tuple[FoundText, ...]
    rewritten: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


def find_texts(chat: Chat, rendered: str, render: Callable[[Chat], str]) -> ChatFrame:
    """Where the texts of `chat` stand in `rendered`, its rendering."""
    texts, placed = _texts(chat), _all_messages(chat)
    frame = _try(render, with_placeholders(chat, placed))
    found = _matched(texts, frame, rendered)
    if found is None:
        placed, found, frame = _found_by_halving(chat, rendered, render)
    rewritten = set(_filled(chat)) - placed
    return ChatFrame(found, tuple(sorted(rewritten)), _left_out(chat, texts, placed, frame))


def _left_out(chat: Chat, texts: Sequence[_Text], placed: frozenset[int], frame: str) -> tuple[int, ...]:
    """As ChatFrame.left_out: which of the `placed` messages have no placeholder in `frame`."""
    shown = {int(match[1]) for match in _PATTERN.finditer(frame)}
    numbers = defaultdict[tuple[int, int | None], list[int]](list)
    for number, text in enumerate(texts):
        if text.is_answer and text.text.strip() and text.message in placed:
            part = None if chat.messages[text.message].role == "assistant" else text.part
            numbers[text.message, part].append(number)
    left_out = {message for (message, _), own in numbers.items() if shown.isdisjoint(own)}
    return tuple(sorted(left_out))


def with_placeholders(chat: Chat, messages: frozenset[int]) -> Chat:
    """The chat with each text of these messages replaced by a numbered placeholder. Empty texts stay empty: templates
    test for that."""
    numbers = count()

    def framed(pieces: Sequence[str], placed: bool) -> str:
        # Texts at even places are numbered, also where they are not replaced; the others stay.
        result = list(pieces)
        for at in range(0, len(pieces), 2):
            number = next(numbers)
            if placed and pieces[at]:
                result[at] = _PLACEHOLDER.format(number)
        return "".join(result)

    made = []
    for at, message in enumerate(chat.messages):
        *contents, reasoning = (framed(pieces, at in messages) for pieces in _fields(message))
        parts = tuple(replace(part, text=text) for part, text in zip(message.parts, contents, strict=True))
        made.append(replace(message, parts=parts, reasoning=reasoning))
    tools = list(chat.tools_json)
    for at, tool in _marked_tools(chat):
        placeholders = (framed([text], at in messages) for text in descriptions(tool))
        tools[at - len(chat.messages)] = json.dumps(with_descriptions(tool, placeholders))
    return replace(chat, messages=tuple(made), tools_json=tuple(tools))


def _all_messages(chat: Chat) -> frozenset[int]:
    """The numbers of the messages, and of the tools that are marked as documents."""
    return frozenset(range(len(chat.messages))) | {at for at, _ in _marked_tools(chat)}


def _marked_tools(chat: Chat) -> list[tuple[int, Any]]:
    """The tools that are marked as documents, with the numbers that they have as further messages."""
    if not chat.document_tools:
        return []
    tools = parse_tools(chat)
    return [(len(chat.messages) + number, tools[number]) for number in sorted(chat.document_tools)]


def _fields(message: Message) -> list[list[str]]:
    """The text of each part, then the reasoning, each in pieces: texts at even places, and between them what stays in
    the frame."""
    is_answer = message.role == "assistant"
    contents = [_split_at_tags(part.text) if is_answer else [part.text] for part in message.parts]
    before, rest = _leading_space(message.reasoning)
    return [*contents, ["", before, *_trailing_space(rest), ""]]


def _split_at_tags(text: str) -> list[str]:
    """In pieces as `_fields` has them: texts, and tags with the white space around them, which templates strip where
    they cut."""
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


def _filled(chat: Chat) -> list[int]:
    """The messages with a text. Templates test for blank ones, and nothing of them needs to be dropped."""
    messages = [at for at, each in enumerate(chat.messages) if f"{each.text}{each.reasoning}".strip()]
    return messages + [at for at, tool in _marked_tools(chat) if any(map(str.strip, descriptions(tool)))]


def _found_by_halving(
    chat: Chat, rendered: str, render: Callable[[Chat], str]
) -> tuple[frozenset[int], tuple[FoundText, ...], str]:
    """The messages that the template does not rewrite, as far as they were tried; where their texts stand; and their
    frame."""
    placed, found, frame, texts = frozenset[int](), tuple[FoundText, ...](), "", _texts(chat)
    filled = _filled(chat)
    untried = deque(_halves(filled) if len(filled) == len(_all_messages(chat)) else [filled])
    for _ in range(min(MAX_RENDERINGS, MAX_RENDERED_CHARACTERS // max(1, len(rendered)))):
        if not untried:
            break
        some = untried.popleft()
        wanted = placed | frozenset(some)
        tried = _try(render, with_placeholders(chat, wanted))
        matched = _matched(texts, tried, rendered)
        if matched is None:
            untried.extend(_halves(some))
        else:
            placed, found, frame = wanted, matched, tried
    return placed, found, frame


def _halves(numbers: list[int]) -> list[list[int]]:
    middle = len(numbers) // 2
    return [numbers[:middle], numbers[middle:]] if middle else []


def _try(render: Callable[[Chat], str], chat: Chat) -> str:
    """Empty if the template refuses the placeholders: it looks at the texts."""
    try:
        return render(chat)
    except InvalidRequest:
        return ""


def _matched(texts: Sequence[_Text], frame: str, rendered: str) -> tuple[FoundText, ...] | None:
    """The texts of `rendered` at the placeholders of `frame`; None if it is not the frame with texts filled in."""
    head, *pieces = _PATTERN.split(frame)
    numbers = list(map(int, pieces[::2]))
    if not rendered.startswith(head) or max(numbers, default=-1) >= len(texts):
        return None
    placed = [(texts[number], literal) for number, literal in zip(numbers, pieces[1::2], strict=True)]
    found, at = list[FoundText](), len(head)
    for _, together in groupby(placed, lambda each: each[0].message):
        some = list(together)
        matched = next(filter(None, (_matched_as(way, some, rendered, at) for way in _WAYS)), None)
        if matched is None:
            return None
        found += matched
        at = matched[-1].range.end + len(some[-1][1])
    return tuple(found) if at == len(rendered) else None


def _matched_as(way: _Way, placed: list[tuple[_Text, str]], rendered: str, at: int) -> list[FoundText] | None:
    """The texts of one message, each with what follows it in the frame, written in one way from `at` on."""
    found = []
    for text, literal in placed:
        written = text.written(way)
        end = at + len(written)
        if not (rendered.startswith(written, at) and rendered.startswith(literal, end)):
            return None
        found.append(FoundText(text.message, text.part, Range(at, end)))
        at = end + len(literal)
    return found


@dataclass(frozen=True, slots=True)
class _Way:
    """How a template writes the texts of a message: without these characters at its start and end (None: white space),
    or at those of each part, and as a JSON string."""

    start: str | None = ""
    end: str | None = ""
    of_parts: bool = False
    as_json: bool = False


# The likeliest first. Gemma 3 strips parts; Llama 2 strips the first text with the system's; Llama 3 writes the results
# of tools as JSON.
_SIDES = (("", ""), (None, None), ("\n", "\n"))
_WAYS = [
    *(_Way(start, end) for start, end in _SIDES),
    _Way(None, None, of_parts=True),
    *(_Way(start, end) for start, end in (("", None), (None, ""), ("\n", ""), ("", "\n"))),
    *(_Way(start, end, as_json=True) for start, end in _SIDES),
]


@dataclass(frozen=True, slots=True)
class _Text:
    """A text of a message; `message` and `part` as in FoundText. `is_first`, `is_last`: of its content only white space
    is before or after it, so that templates strip it; `..._of_part`: it begins or ends its part. `is_answer`: templates
    should show it; they may leave out reasoning."""

    message: int
    part: int | None
    text: str
    is_first: bool = False
    is_last: bool = False
    is_first_of_part: bool = False
    is_last_of_part: bool = False
    is_answer: bool = False

    def written(self, way: _Way) -> str:
        is_first = self.is_first_of_part if way.of_parts else self.is_first
        is_last = self.is_last_of_part if way.of_parts else self.is_last
        text = self.text.lstrip(way.start) if is_first else self.text
        text = text.rstrip(way.end) if is_last else text
        return json.dumps(text, ensure_ascii=False)[1:-1] if way.as_json else text


def _texts(chat: Chat) -> list[_Text]:
    """In the order of their numbers."""
    found = []
    for at, message in enumerate(chat.messages):
        *contents, reasoning = _fields(message)
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
            _Text(at, part, text, place <= filled[0], place >= filled[-1], number == 0, ends_part, place >= answer)
            for place, (part, number, text, ends_part) in enumerate(texts)
        ]
        found += [_Text(at, None, text) for text in reasoning[::2]]
    for at, tool in _marked_tools(chat):
        found += [_Text(at, None, text) for text in descriptions(tool)]
    return found
