"""Tells the control tokens of the chat template from those in strings of the caller.

The chat is rendered once more with a placeholder for each control token in a string of the caller. The control tokens
between the placeholders are the template's. What stands beside a string in the prompt may complete a control token: the
next part, or what the template writes. So a character of each piece at an end of a string has a placeholder too.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_frame import Range
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.chat_texts import message_strings
from presift.orchestrator.prompt.chat_tools import parse_tool_calls
from presift.orchestrator.prompt.placeholders import as_written


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


class TokenPieces:
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


class CallerTokens:
    """The control tokens in strings of the caller, found by `pattern`. `chat` has a placeholder for each, and for
    pieces. Texts that may have `tags` keep those (see `_may_have_tags`)."""

    def __init__(self, rendered: RenderedChat, pattern: re.Pattern[str], tags: Set[str]) -> None:
        self._rendered, self._pattern, self._tags = rendered, pattern, tags
        self._pieces = TokenPieces(_all_in(rendered.text, pattern))
        # What each placeholder stands for, and the numbers of those for a piece.
        self._originals = list[str]()
        self._piece_numbers = set[int]()
        self.chat = self._marked(rendered.chat)

    @property
    def chat_with_pieces_in_values(self) -> Chat:
        """`chat`, where tools, calls, names and variables have pieces as they are: templates may look at them."""

        placeholders = self._rendered.placeholders

        def original(number: int) -> str:
            return self._originals[number] if number in self._piece_numbers else placeholders.write(number)

        def restored(*texts: str) -> tuple[str, ...]:
            return tuple(placeholders.replace(text, original) for text in texts)

        messages = []
        for each in self.chat.messages:
            name, tool_call_id, *calls = restored(each.name, each.tool_call_id, *each.tool_calls_json)
            messages.append(replace(each, name=name, tool_call_id=tool_call_id, tool_calls_json=tuple(calls)))
        variables, *tools = restored(self.chat.template_kwargs_json, *self.chat.tools_json)
        return replace(self.chat, messages=tuple(messages), tools_json=tuple(tools), template_kwargs_json=variables)

    def template_ranges(self, chat: Chat) -> tuple[Range, ...] | None:
        """Where the template wrote control tokens, ascending; `chat` has some of the placeholders. None if it renders
        them in another way than what they stand for."""
        again = self._rendered.render_again(chat)
        if again is None:
            return None
        literal, placeholders = self._rendered.placeholders.split(again)
        texts, ranges, length = [literal], self._ranges(literal, 0), len(literal)
        for number, is_escaped, after in placeholders:
            original = as_written(self._originals[number], is_escaped=is_escaped)
            length += len(original)
            ranges += self._ranges(after, length)
            texts += [original, after]
            length += len(after)
        return tuple(ranges) if "".join(texts) == self._rendered.text else None

    def each_field(self) -> Iterator[tuple[str, str, Chat]]:
        """For each message and tool with placeholders: its field, its first control token, which is empty if it has
        only pieces, and the chat with the placeholders of this field alone."""
        chat = self._rendered.chat
        for at, message in enumerate(self.chat.messages):
            if (token := self._first_token(message_strings(message))) is not None:
                changed = (*chat.messages[:at], message, *chat.messages[at + 1 :])
                yield f"prompt.chat.messages[{at}]", token, replace(chat, messages=changed)
        for at, tool in enumerate(self.chat.tools_json):
            if (token := self._first_token([tool])) is not None:
                tools = (*chat.tools_json[:at], tool, *chat.tools_json[at + 1 :])
                yield f"prompt.chat.tools_json[{at}]", token, replace(chat, tools_json=tools)

    def _first_token(self, texts: Iterable[str]) -> str | None:
        """The first one with a placeholder in `texts`. Empty if they have only pieces; None without placeholders."""
        numbers = self._rendered.placeholders.numbers("".join(texts))
        tokens = numbers - self._piece_numbers
        return self._originals[min(tokens)] if tokens else "" if numbers else None

    def _ranges(self, text: str, start: int) -> list[Range]:
        return [Range(start + match.start(), start + match.end()) for match in self._pattern.finditer(text)]

    def _marked(self, chat: Chat) -> Chat:
        return replace(
            chat,
            messages=tuple(self._marked_message(chat, at) for at in range(len(chat.messages))),
            tools_json=tuple(_changed_json(each, self._marked_value) for each in chat.tools_json),
            template_kwargs_json=_changed_json(chat.template_kwargs_json, self._marked_value),
        )

    def _marked_message(self, chat: Chat, number: int) -> Message:
        message = chat.messages[number]
        texts = [part.text for part in message.parts]
        tags = [_may_have_tags(message, part) for part in message.parts]
        if chat.separate_parts:
            texts = [self._marked_texts([text], [tag])[0] for text, tag in zip(texts, tags, strict=True)]
        else:
            texts = self._marked_texts(texts, tags)
        calls = parse_tool_calls(message, number) if message.tool_calls_json else ()
        return replace(
            message,
            parts=tuple(replace(part, text=text) for part, text in zip(message.parts, texts, strict=True)),
            reasoning=self._marked_texts([message.reasoning], [True])[0],
            tool_calls_json=tuple(
                json.dumps(new) if (new := self._marked_value(call)) != call else text
                for call, text in zip(calls, message.tool_calls_json, strict=True)
            ),
            name=self._marked_value(message.name),
            tool_call_id=self._marked_value(message.tool_call_id),
        )

    def _marked_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._marked_texts([value], [False])[0]
        if isinstance(value, list):
            return list(map(self._marked_value, value))
        if not isinstance(value, dict):
            return value
        return {self._marked_value(name): self._marked_value(of) for name, of in value.items()}

    def _marked_texts(self, texts: list[str], may_have_tags: Sequence[bool]) -> list[str]:
        """`texts`, which the template joins. A control token may go across several: its placeholder is in the text
        where it begins."""
        joined = "".join(texts)
        found = self._occurrences(joined)
        # `start`: of the text in `joined`; `at`: what of `joined` is written or replaced already.
        made, start, at = list[str](), 0, 0
        for text, has_tags in zip(texts, may_have_tags, strict=True):
            end, written = start + len(text), list[str]()
            while found and found[0][0] < end:
                first, last, is_piece = found.popleft()
                original = joined[first:last]
                if not (has_tags and original in self._tags):
                    written += [joined[at:first], self._placeholder(original, is_piece=is_piece)]
                    at = last
            made.append("".join([*written, joined[at:end]]))
            start, at = end, max(at, end)
        return made

    def _occurrences(self, text: str) -> deque[tuple[int, int, bool]]:
        """(start, end, whether it is a piece) of the control tokens in `text` and of the pieces at its ends, ascending.
        A piece has one character."""
        found = [(*match.span(), False) for match in self._pattern.finditer(text)]
        outer = [*found[:1], *found[-1:]]
        edges = [at for at in self._pieces.at_ends(text) if not any(start <= at < end for start, end, _ in outer)]
        return deque(sorted([*found, *((at, at + 1, True) for at in edges)]))

    def _placeholder(self, original: str, *, is_piece: bool) -> str:
        number = len(self._originals)
        self._originals.append(original)
        if is_piece:
            self._piece_numbers.add(number)
        return self._rendered.placeholders.write(number)


def _all_in(text: str, pattern: re.Pattern[str]) -> set[str]:
    """The control tokens in `text`, and those that begin within others: with a placeholder they may become one."""
    starts = (at for match in pattern.finditer(text) for at in range(*match.span()))
    found = {match[0] for at in starts if (match := pattern.match(text, at))}
    return found | {each[:end] for each in found for end in range(1, len(each)) if pattern.fullmatch(each[:end])}


def _changed_json(text: str, changed: Callable[[Any], Any]) -> str:
    """JSON with its strings `changed`. It is parsed, because it may write a control token's characters as escapes."""
    try:
        value = json.loads(text)
        new = changed(value)
    except (ValueError, RecursionError):  # what is invalid is refused where it is read
        return text
    return text if new == value else json.dumps(new)


def _may_have_tags(message: Message, part: TextPart) -> bool:
    """Prompts that describe tools name tags, such as `<tool_call>`, which are tokens there. In documents and results of
    tools they are text."""
    return message.role != "tool" and not part.document
