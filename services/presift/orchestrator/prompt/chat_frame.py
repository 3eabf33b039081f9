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
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.chat_texts import (
    ChatText,
    all_messages,
    chat_texts,
    filled_messages,
    with_placeholders,
)

# Renderings to find the messages that a template rewrites, and their characters in all. Messages not yet tried by then
# count as rewritten.
MAX_RENDERINGS = 32
MAX_RENDERED_CHARACTERS = 1 << 25


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The characters `start <= i < end` of the rendered prompt."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FoundText:
    """Where a text of a message stands; `message` and `part` as in ChatText."""

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


def find_texts(rendered: RenderedChat) -> ChatFrame:
    """Where the texts of the chat stand."""
    chat = rendered.chat
    texts, placed = chat_texts(chat), all_messages(chat)
    frame = _frame(rendered, placed)
    found = _matched(texts, frame, rendered)
    if found is None:
        placed, found, frame = _found_by_halving(texts, rendered)
    rewritten = set(filled_messages(chat)) - placed
    return ChatFrame(found, tuple(sorted(rewritten)), _left_out(rendered, texts, placed, frame))


def _frame(rendered: RenderedChat, messages: frozenset[int]) -> str:
    """The rendering with placeholders for these messages. Empty if the template refuses that: it looks at the texts."""
    return rendered.render_again(with_placeholders(rendered.chat, messages, rendered.placeholders)) or ""


def _left_out(rendered: RenderedChat, texts: Sequence[ChatText], placed: frozenset[int], frame: str) -> tuple[int, ...]:
    """As ChatFrame.left_out: which of the `placed` messages have no placeholder in `frame`."""
    shown, messages = rendered.placeholders.numbers(frame), rendered.chat.messages
    numbers = defaultdict[tuple[int, int | None], list[int]](list)
    for number, text in enumerate(texts):
        if text.is_answer and text.text.strip() and text.message in placed:
            part = None if messages[text.message].role == "assistant" else text.part
            numbers[text.message, part].append(number)
    left_out = {message for (message, _), own in numbers.items() if shown.isdisjoint(own)}
    return tuple(sorted(left_out))


def _found_by_halving(
    texts: Sequence[ChatText], rendered: RenderedChat
) -> tuple[frozenset[int], tuple[FoundText, ...], str]:
    """The messages that the template does not rewrite, as far as they were tried; where their texts stand; and their
    frame."""
    placed, found, frame = frozenset[int](), tuple[FoundText, ...](), ""
    filled = filled_messages(rendered.chat)
    untried = deque(_halves(filled) if len(filled) == len(all_messages(rendered.chat)) else [filled])
    for _ in range(min(MAX_RENDERINGS, MAX_RENDERED_CHARACTERS // max(1, len(rendered.text)))):
        if not untried:
            break
        some = untried.popleft()
        wanted = placed | frozenset(some)
        tried = _frame(rendered, wanted)
        matched = _matched(texts, tried, rendered)
        if matched is None:
            untried.extend(_halves(some))
        else:
            placed, found, frame = wanted, matched, tried
    return placed, found, frame


def _halves(numbers: list[int]) -> list[list[int]]:
    middle = len(numbers) // 2
    return [numbers[:middle], numbers[middle:]] if middle else []


def _matched(texts: Sequence[ChatText], frame: str, rendered: RenderedChat) -> tuple[FoundText, ...] | None:
    """The texts of `rendered` at the placeholders of `frame`; None if it is not the frame with texts filled in."""
    head, placeholders = rendered.placeholders.split(frame)
    if not rendered.text.startswith(head):
        return None
    placed = [(texts[each.number], each.after) for each in placeholders]
    found, at = list[FoundText](), len(head)
    for _, together in groupby(placed, lambda each: each[0].message):
        some = list(together)
        matched = next(filter(None, (_matched_as(way, some, rendered.text, at) for way in _WAYS)), None)
        if matched is None:
            return None
        found += matched
        at = matched[-1].range.end + len(some[-1][1])
    return tuple(found) if at == len(rendered.text) else None


def _matched_as(way: _Way, placed: list[tuple[ChatText, str]], rendered: str, at: int) -> list[FoundText] | None:
    """The texts of one message, each with what follows it in the frame, written in one way from `at` on."""
    found = []
    for text, literal in placed:
        written = way.written(text)
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

    def written(self, text: ChatText) -> str:
        is_first = text.is_first_of_part if self.of_parts else text.is_first
        is_last = text.is_last_of_part if self.of_parts else text.is_last
        written = text.text.lstrip(self.start) if is_first else text.text
        written = written.rstrip(self.end) if is_last else written
        return json.dumps(written, ensure_ascii=False)[1:-1] if self.as_json else written


# The likeliest first. Gemma 3 strips parts; Llama 2 strips the first text with the system's; Llama 3 writes the results
# of tools as JSON.
_SIDES = (("", ""), (None, None), ("\n", "\n"))
_WAYS = [
    *(_Way(start, end) for start, end in _SIDES),
    _Way(None, None, of_parts=True),
    *(_Way(start, end) for start, end in (("", None), (None, ""), ("\n", ""), ("", "\n"))),
    *(_Way(start, end, as_json=True) for start, end in _SIDES),
]
