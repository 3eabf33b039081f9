"""Keeps a caller's text from becoming control tokens, such as `<|im_end|>`, with which a document could forge turns.

Where the caller's strings hold a control token, the chat is rendered once more with a stand-in for each. So the
characters of these occurrences in the rendered prompt are known. The prompt is then read by a copy of the tokenizer, in
which the control tokens have other names: those that the template wrote are renamed in the prompt, those of the caller
are not, and are read as any text. Names have the same length, so that the offsets of tokens stay.

Tags such as `<tool_call>` are a case of their own: prompts for tools name them, and expect them to be read as tokens.
They are text in what others wrote: results and definitions of tools, arguments of calls, and documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_frame import REASONING_TAGS, Range

# Private-use characters, which mean nothing to chat templates and are in no vocabulary.
_STAND_IN = "\ue002{}\ue003"
# Some templates write the characters of JSON strings as escapes.
_STAND_INS = re.compile(r"(?:\ue002|\\ue002)(\d+)(?:\ue003|\\ue003)")
_FIRST_NAME = 0xF0000
# Other added tokens may be white space or words.
_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
_TAG = re.compile(r"</?\w+>")
# What callers write to switch something, as GLM's /nothink.
_SWITCH = re.compile(r"/\w+")


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and the added marks in `turns`, chats as the template
    renders them. Tags of reasoning are none, as answers in the history have them, nor are switches of callers."""

    def __init__(self, backend: Tokenizer, turns: str) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder().values()
        contents = {each.content for each in added if _is_control(each, turns)}
        self._tags = {each.content for each in added if not each.special and _TAG.fullmatch(each.content)}
        # The longest first, as the tokenizer matches them.
        # A text may look like a stand-in: so its first character has one too, if only to come back.
        self.contents = sorted({*contents, _STAND_IN[0]}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self.contents)) or "(?!)")
        self._numbers = {content: number for number, content in enumerate(self.contents)}

    def with_stand_ins(self, chat: Chat) -> Chat:
        """The chat with a stand-in for each control token in the caller's strings; `chat` itself if it has none."""
        swapped = replace(
            chat,
            messages=tuple(self._message(each, chat.parts_are_apart) for each in chat.messages),
            tools_json=tuple(map(self._json, chat.tools_json)),
            template_kwargs_json=self._json(chat.template_kwargs_json),
        )
        return chat if swapped == chat else swapped

    def restored(self, rendered: str) -> tuple[str, tuple[Range, ...]]:
        """The rendering of a chat with stand-ins: with its control tokens, and where they stand."""
        pieces, ranges, length = list[str](), list[Range](), 0
        for at, piece in enumerate(_STAND_INS.split(rendered)):
            text = self.contents[int(piece)] if at % 2 and int(piece) < len(self.contents) else piece
            if at % 2:
                ranges.append(Range(length, length + len(text)))
            pieces.append(text)
            length += len(text)
        return "".join(pieces), tuple(ranges)

    def encode(self, rendered: str, texts: Sequence[Range]) -> Encoding:
        """The tokens of `rendered`, whose control tokens at `texts` are text. Raises InvalidRequest if the tokenizer
        cannot read them as text."""
        if self._renamed is None:
            name = rendered[texts[0].start : texts[0].end]
            raise InvalidRequest("prompt.chat.messages", repr(name), "text without control tokens of this tokenizer")
        starts = {each.start for each in texts}
        renamed = self._pattern.sub(
            lambda match: match[0] if match.start() in starts else self._name(match[0]), rendered
        )
        return self._renamed.encode_batch([renamed], add_special_tokens=False)[0]

    @cached_property
    def _renamed(self) -> Tokenizer | None:
        """The copy of the tokenizer. None if the tokens do not keep their ids, as the model needs their names."""
        state = json.loads(self._backend.to_str())
        for token in state["added_tokens"]:
            if token["content"] in self._numbers:
                token["content"] = self._name(token["content"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._name(text): number for text, number in model["vocab"].items()}
        else:
            model["vocab"] = [[self._name(text), *rest] for text, *rest in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._name(model["unk_token"])
        try:
            copy = Tokenizer.from_str(json.dumps(state))
        except Exception:
            return None
        is_same = all(copy.token_to_id(self._name(each)) == self._backend.token_to_id(each) for each in self.contents)
        return copy if is_same else None

    def _name(self, content: str) -> str:
        number = self._numbers.get(content)
        return content if number is None else chr(_FIRST_NAME + number) * len(content)

    def _swapped(self, text: str, *, may_have_tags: bool = False) -> str:
        return self._pattern.sub(lambda match: self._stand_in(match, may_have_tags), text)

    def _stand_in(self, match: re.Match[str], may_have_tags: bool) -> str:
        is_kept = may_have_tags and match[0] in self._tags
        return match[0] if is_kept else _STAND_IN.format(self._numbers[match[0]])

    def _message(self, message: Message, parts_are_apart: bool) -> Message:
        parts = message.parts
        if parts_are_apart or len(parts) < 2:
            parts = tuple(
                replace(part, text=self._swapped(part.text, may_have_tags=_may_have_tags(message, part)))
                for part in parts
            )
        elif self._pattern.search(message.text):
            parts = self._swapped_across(message)
        return replace(
            message,
            parts=parts,
            reasoning=self._swapped(message.reasoning, may_have_tags=True),
            tool_calls_json=tuple(map(self._json, message.tool_calls_json)),
            name=self._swapped(message.name),
            tool_call_id=self._swapped(message.tool_call_id),
        )

    def _swapped_across(self, message: Message) -> tuple[TextPart, ...]:
        """Parts are joined: a control token that goes across parts is one too. It moves to the part it begins in."""
        text, parts, start = message.text, list[TextPart](), 0
        matches = list(self._pattern.finditer(text))
        for part in message.parts:
            end, at, pieces = start + len(part.text), start, list[str]()
            for match in matches:
                if start <= match.start() < end:
                    stand_in = self._stand_in(match, _may_have_tags(message, part))
                    pieces += [text[at : match.start()], stand_in]
                if match.start() < end and match.end() > start:
                    at = min(match.end(), end)
            parts.append(replace(part, text="".join([*pieces, text[at:end]])))
            start = end
        return tuple(parts)

    def _json(self, text: str) -> str:
        """JSON may write the characters of a control token as escapes."""
        if not self._pattern.search(text) and "\\u" not in text:
            return text
        try:
            plain = json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):  # what is invalid is refused where it is read
            return text
        swapped = self._swapped(plain)
        return text if swapped == plain else swapped


def _is_control(token: AddedToken, turns: str) -> bool:
    if REASONING_TAGS.fullmatch(token.content) or _SWITCH.fullmatch(token.content):
        return False
    return bool(token.special or (_MARK.fullmatch(token.content) and token.content in turns))


def _may_have_tags(message: Message, part: TextPart) -> bool:
    return message.role != "tool" and not part.document


def turns_of(render: Callable[[Chat], str]) -> str:
    """Ordinary chats, rendered: those that the template accepts."""
    rendered = []
    for messages, tools in ((_TURNS, ()), (_CALLING, ()), (_CALLING, (_TOOL,))):
        with suppress(InvalidRequest):
            rendered.append(render(Chat(messages, tools)))
    return "\n".join(rendered)


def _say(role: str, **given: Any) -> Message:
    return Message(role, (TextPart("a"),), **given)


_TOOL = '{"type": "function", "function": {"name": "f", "description": "a", "parameters": {"type": "object"}}}'
# Mistral's templates accept only ids of nine characters.
_CALL = '{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"b": "c"}}}'
_TURNS = (_say("user"), _say("assistant"), _say("user"))
_CALLING = (
    _say("user"),
    Message("assistant", (), tool_calls_json=(_CALL,)),
    _say("tool", name="f", tool_call_id="call00001"),
    *_TURNS[1:],
)
