"""Writes stand-ins for control tokens in the strings of a chat: its rendering then shows what of it is the caller's.

What stands beside a string in the prompt may complete a control token: the next part, or what the template writes. So a
character of each piece at an end of a string has a stand-in too.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_frame import Range
from presift.orchestrator.prompt.chat_tools import parse_tool_calls

# Private-use characters, which mean nothing to chat templates.
_STAND_IN = "\ue002{}\ue003"
# Some templates write the characters of JSON strings as escapes.
_STAND_INS = re.compile(r"(?:\ue002|\\ue002)(\d+)(?:\ue003|\\ue003)")
# The caller's own ones get a stand-in for their first character.
_ESCAPED = r"\ue002|\\(?=ue002)"


def any_of(texts: Collection[str]) -> str:
    """A pattern for any of `texts`, the longest that fits. Texts that begin alike share that: a model may have a
    thousand control tokens, and each `<` in a prompt would be compared with all."""
    rests = defaultdict[str, list[str]](list)
    for each in filter(None, texts):
        rests[each[0]].append(each[1:])
    made = [f"{re.escape(first)}{any_of(some) if any(some) else ''}" for first, some in rests.items()]
    if len(made) == 1 and "" not in texts:
        return made[0]
    return f"(?:{'|'.join(made)})" + "?" * ("" in texts) if made else "(?!)"


@dataclass(frozen=True, slots=True)
class _Replacement:
    """The stand-in `text` for the characters `start <= i < end` of a text."""

    start: int
    end: int
    text: str


class Pieces:
    """The pieces of `tokens`: their beginnings, their ends, and what is inside."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._longest = max(map(len, tokens), default=1) - 1
        self._first = {each[:length] for each in tokens for length in range(1, len(each))}
        self._last = {each[-length:] for each in tokens for length in range(1, len(each))}
        self._any = "\n".join(tokens)

    def at_ends(self, text: str) -> list[int]:
        """The positions of the first and the last character of `text`, of each if a piece of a token is there. White
        space around `text` does not count: templates strip it."""
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        lengths = range(1, min(self._longest, end - start) + 1)
        is_piece = 0 < end - start <= self._longest and text[start:end] in self._any
        begins = is_piece or any(text[start : start + each] in self._last for each in lengths)
        ends = any(text[end - each : end] in self._first for each in lengths)
        return sorted({at for at, is_marked in ((start, begins), (end - 1, ends)) if is_marked})


class StandIns:
    """Stand-ins for the control tokens `contents`. Texts that may have `tags` keep those (see `_may_have_tags`)."""

    def __init__(self, contents: Sequence[str], tags: Set[str]) -> None:
        self._contents, self._tags = contents, tags
        self._numbers = {content: number for number, content in enumerate(contents)}
        self._pattern = re.compile(f"{_ESCAPED}|{any_of(contents)}")

    def in_chat(self, chat: Chat, in_texts: Pieces, in_values: Pieces) -> Chat:
        """The chat with stand-ins for the control tokens. Pieces of them have stand-ins too: `in_texts` those in texts,
        `in_values` those in tools, calls and variables, at which templates may look."""

        def swapped(value: Any) -> Any:
            if isinstance(value, str):
                return self._swapped([value], in_values)[0]
            if isinstance(value, list):
                return list(map(swapped, value))
            return {swapped(name): swapped(of) for name, of in value.items()} if isinstance(value, dict) else value

        return replace(
            chat,
            messages=tuple(self._message(each, chat.parts_are_apart, in_texts, swapped) for each in chat.messages),
            tools_json=tuple(_swapped_json(each, swapped) for each in chat.tools_json),
            template_kwargs_json=_swapped_json(chat.template_kwargs_json, swapped),
        )

    def restored(self, rendered: str) -> tuple[str, tuple[Range, ...]]:
        """`rendered`, a chat with stand-ins, with what they stand for; and where that is, ascending."""
        pieces, ranges, length = list[str](), list[Range](), 0
        for at, piece in enumerate(_STAND_INS.split(rendered)):
            # Python refuses to read very long numbers; no stand-in has more than eight digits.
            text = self._original(int(piece[:8])) if at % 2 else piece
            if at % 2:
                ranges.append(Range(length, length + len(text)))
            pieces.append(text)
            length += len(text)
        return "".join(pieces), tuple(ranges)

    def _original(self, number: int) -> str:
        character = number - len(self._contents)
        return self._contents[number] if character < 0 else chr(min(character, 0x10FFFF))

    def _message(
        self, message: Message, parts_are_apart: bool, pieces: Pieces, swapped: Callable[[Any], Any]
    ) -> Message:
        texts = [part.text for part in message.parts]
        tags = [_may_have_tags(message, part) for part in message.parts]
        if parts_are_apart:
            texts = [self._swapped([text], pieces, [tag])[0] for text, tag in zip(texts, tags, strict=True)]
        else:
            texts = self._swapped(texts, pieces, tags)
        calls = message.tool_calls_json and parse_tool_calls(message)
        return replace(
            message,
            parts=tuple(replace(part, text=text) for part, text in zip(message.parts, texts, strict=True)),
            reasoning=self._swapped([message.reasoning], pieces, [True])[0],
            tool_calls_json=tuple(
                json.dumps(new) if (new := swapped(call)) != call else text
                for call, text in zip(calls, message.tool_calls_json, strict=True)
            ),
            name=swapped(message.name),
            tool_call_id=swapped(message.tool_call_id),
        )

    def _swapped(self, texts: list[str], pieces: Pieces, may_have_tags: Sequence[bool] = ()) -> list[str]:
        """With stand-ins, for `texts` that the template joins. A control token may go across several: its stand-in is
        in the text where it begins. `may_have_tags`: for each text, or empty if none may."""
        joined = "".join(texts)
        found = self._replacements(joined, pieces)
        if not found:
            return texts
        # `start`: of the text in `joined`; `at`: what of `joined` is written or replaced already.
        made, start, at, next_ = list[str](), 0, 0, 0
        for number, text in enumerate(texts):
            end, written, has_tags = start + len(text), list[str](), may_have_tags[number : number + 1] == [True]
            while next_ < len(found) and found[next_].start < end:
                each = found[next_]
                is_kept = has_tags and joined[each.start : each.end] in self._tags
                written += [joined[at : each.start], joined[each.start : each.end] if is_kept else each.text]
                at, next_ = each.end, next_ + 1
            made.append("".join([*written, joined[at:end]]))
            start, at = end, max(at, end)
        return made

    def _replacements(self, text: str, pieces: Pieces) -> list[_Replacement]:
        found = [
            _Replacement(each.start(), each.end(), self._stand_in(each[0])) for each in self._pattern.finditer(text)
        ]
        held = [*found[:1], *found[-1:]]
        edges = [at for at in pieces.at_ends(text) if not any(each.start <= at < each.end for each in held)]
        return sorted(
            [*found, *(_Replacement(at, at + 1, self._stand_in(text[at])) for at in edges)], key=lambda each: each.start
        )

    def _stand_in(self, text: str) -> str:
        number = self._numbers.get(text)
        return _STAND_IN.format(len(self._contents) + ord(text) if number is None else number)


def _swapped_json(text: str, swapped: Callable[[Any], Any]) -> str:
    """JSON with its strings `swapped`. It is parsed, because it may write a control token's characters as escapes."""
    try:
        value = json.loads(text)
        new = swapped(value)
    except (ValueError, RecursionError):  # what is invalid is refused where it is read
        return text
    return text if new == value else json.dumps(new)


def _may_have_tags(message: Message, part: TextPart) -> bool:
    """Prompts that describe tools name tags, such as `<tool_call>`, which are tokens there. In documents and results of
    tools they are text."""
    return message.role != "tool" and not part.document
