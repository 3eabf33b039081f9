"""Keeps a caller's text from becoming control tokens, such as `<|im_end|>`, with which a document could forge turns.

Where the caller's strings hold a control token, or a piece of one, the chat is rendered once more with a stand-in for
each. So the characters of these occurrences in the rendered prompt are known. The prompt is then read by a copy of the
tokenizer, in which the control tokens have other names: those that the template wrote are renamed in the prompt, those
of the caller are not, and are read as any text. Names have the same length, so that the offsets of tokens stay.

Tags such as `<tool_call>` are a case of their own: prompts for tools name them, and expect them to be read as tokens.
They are text in what others wrote: results and definitions of tools, arguments of calls, and documents.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_frame import REASONING_TAGS, Range
from presift.orchestrator.prompt.stand_ins import Pieces, StandIns, any_of

# Private-use characters, which are in no vocabulary.
_FIRST_NAME, _FILL = 0xF0000, "\U00100000"
# Other added tokens may be white space or words.
_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
_TAG = re.compile(r"</?\w+>")
# What callers write to switch something, as GLM's /nothink.
_SWITCH = re.compile(r"/\w+")


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and the added marks in `turns` (see `turns_of`). Tags of
    reasoning are not among them, because answers in the history have them, nor are switches of callers."""

    def __init__(self, backend: Tokenizer, turns: str) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder().values()
        contents = {each.content for each in added if _is_control(each, turns)}
        tags = {each.content for each in added if not each.special and _TAG.fullmatch(each.content)}
        # The longest first, as the tokenizer matches them.
        self.contents = sorted(contents, key=len, reverse=True)
        self._pattern = re.compile(any_of(self.contents))
        self._numbers = {content: number for number, content in enumerate(self.contents)}
        self._stand_ins = StandIns(self.contents, tags)

    def texts_in(self, chat: Chat, rendered: str, render: Callable[[Chat], str]) -> tuple[Range, ...]:
        """Where `rendered`, the rendering of `chat`, has control tokens with characters of the caller. Raises
        InvalidRequest if the template reads them."""
        written = {match[0] for match in self._pattern.finditer(rendered)}
        every, none = Pieces(written), Pieces(())
        # Templates may look at values, such as the name of a tool. If one does, pieces in values stay.
        for in_texts, in_values in ((every, every), (every, none)):
            swapped = self._stand_ins.in_chat(chat, in_texts, in_values)
            if swapped == chat:
                return ()
            with suppress(InvalidRequest):
                restored, ranges = self._stand_ins.restored(render(swapped))
                if restored == rendered:
                    return self._overlapping(rendered, ranges)
        raise InvalidRequest(
            "prompt.chat.messages", "text with control tokens", "text without those that the chat template reads"
        )

    def _overlapping(self, rendered: str, ranges: Sequence[Range]) -> tuple[Range, ...]:
        """The control tokens in `rendered` with characters in `ranges`, which are ascending."""
        starts, found = [each.start for each in ranges], list[Range]()
        for match in self._pattern.finditer(rendered):
            at = bisect_left(starts, match.end())
            if at and ranges[at - 1].end > match.start():
                found.append(Range(*match.span()))
        return tuple(found)

    def are_exact(self, encoding: Encoding, rendered: str) -> bool:
        """Whether each control token in `encoding` was read from its own characters, not from others that a normalizer
        changes to these."""
        contents, ids = {self._backend.token_to_id(each): each for each in self.contents}, np.array(encoding.ids)
        for at in np.flatnonzero(np.isin(ids, list(contents))).tolist():
            start, end = encoding.token_to_chars(at) or (0, 0)
            if contents[int(ids[at])] not in rendered[start:end]:
                return False
        return True

    def encode(self, rendered: str, texts: Sequence[Range]) -> Encoding:
        """The tokens of `rendered`, whose control tokens at `texts` are text. Raises InvalidRequest if the tokenizer
        cannot read them as text."""
        if self._renamed is None:
            value, limit = "text with control tokens", "text without control tokens of this tokenizer"
            raise InvalidRequest("prompt.chat.messages", value, limit)
        if re.search(any_of(list(map(self._name, self.contents))), rendered):
            value, limit = "text with control tokens and private-use characters", "text without both"
            raise InvalidRequest("prompt.chat.messages", value, limit)
        starts = {each.start for each in texts}
        renamed = self._pattern.sub(
            lambda match: match[0] if match.start() in starts else self._name(match[0]), rendered
        )
        return self._renamed.encode_batch([renamed], add_special_tokens=False)[0]

    @cached_property
    def _renamed(self) -> Tokenizer | None:
        """The copy of the tokenizer. None if the renamed tokens do not keep their ids: some models need the names."""
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
        ids = {self._name(each): self._backend.token_to_id(each) for each in self.contents}
        read = copy.encode_batch(list(ids), add_special_tokens=False)
        is_same = all(number in each.ids for number, each in zip(ids.values(), read, strict=True))
        return copy if is_same else None

    def _name(self, content: str) -> str:
        """The name of a control token in the copy; other text stays. No name begins with the end of another, so that
        what stands beside one cannot be read as a part of it."""
        number = self._numbers.get(content)
        return content if number is None else chr(_FIRST_NAME + number) + _FILL * (len(content) - 1)


def _is_control(token: AddedToken, turns: str) -> bool:
    if REASONING_TAGS.fullmatch(token.content) or _SWITCH.fullmatch(token.content):
        return False
    return bool(token.special or (_MARK.fullmatch(token.content) and token.content in turns))


def turns_of(render: Callable[[Chat], str]) -> str:
    """Short sample chats as the template renders them, without those that it refuses. They show its marks."""
    rendered = []
    for messages, tools in ((_CHAT, ()), (_CHAT_WITH_CALLS, ()), (_CHAT_WITH_CALLS, (_TOOL,))):
        with suppress(InvalidRequest):
            rendered.append(render(Chat(messages, tools)))
    return "\n".join(rendered)


def _message(role: str, **given: Any) -> Message:
    return Message(role, (TextPart("a"),), **given)


_TOOL = '{"type": "function", "function": {"name": "f", "description": "a", "parameters": {"type": "object"}}}'
# Mistral's templates accept only ids of nine characters.
_CALL = '{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"b": "c"}}}'
_CHAT = (_message("user"), _message("assistant"), _message("user"))
_CHAT_WITH_CALLS = (
    _message("user"),
    Message("assistant", (), tool_calls_json=(_CALL,)),
    _message("tool", name="f", tool_call_id="call00001"),
    *_CHAT[1:],
)
