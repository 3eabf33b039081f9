"""Keeps a caller's text from becoming control tokens, such as `<|im_end|>`, with which a document could forge turns.

caller_tokens.py tells which control tokens of a rendered chat the template wrote. Where there are others, the prompt is
read by a copy of the tokenizer, in which the control tokens have other names: those that the template wrote are renamed
in the prompt, all others are not, and are read as any text. Names have the same length, so that the offsets of tokens
stay.

Tags such as `<tool_call>` are a case of their own: prompts for tools name them, and expect them to be read as tokens.
They are text in what others wrote: results and definitions of tools, arguments of calls, and documents.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.orchestrator.prompt.caller_tokens import CallerTokens, any_of
from presift.orchestrator.prompt.chat_frame import MAX_RENDERINGS, Range
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.chat_texts import REASONING_TAGS

# Private-use characters, which are in no vocabulary.
_FIRST_NAME, _FILL = 0xF0000, "\U00100000"
# Other added tokens may be white space or words.
_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
_TAG = re.compile(r"</?\w+>")
# What callers write to switch something, as GLM's /nothink.
_SWITCH = re.compile(r"/\w+")


@dataclass(frozen=True, slots=True)
class TemplateTokens:
    """Where the template wrote control tokens, ascending: all others are text. `field` is the first that has such a
    text, and `token` that control token; it is empty if only a piece of one is there."""

    ranges: tuple[Range, ...]
    field: str
    token: str


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, added marks such as `<|fim_hole|>`, and added tags in
    `samples`, which are chats as the template renders them. Other tags may be those of HTML. Tags of reasoning are not
    among them, because answers in the history have them, nor are switches of callers."""

    def __init__(self, backend: Tokenizer, samples: str) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder().values()
        contents = {each.content for each in added if _is_control(each, samples)}
        tags = {each.content for each in added if not each.special and _TAG.fullmatch(each.content)}
        # The longest first, as the tokenizer matches them.
        self.contents = sorted(contents, key=len, reverse=True)
        self._pattern = re.compile(any_of(self.contents))
        self._numbers = {content: number for number, content in enumerate(self.contents)}
        self._tags = tags

    def template_tokens(self, rendered: RenderedChat) -> TemplateTokens | None:
        """Where the template wrote control tokens; None if `rendered` has no others. Raises InvalidRequest if it reads
        those of the caller."""
        caller = CallerTokens(rendered, self._pattern, self._tags)
        if caller.chat == rendered.chat:
            return None
        # Templates may look at values, such as the name of a tool. If one does, pieces in values stay.
        for with_pieces in (False, True):
            ranges = caller.template_ranges(caller.chat_with_pieces_in_values if with_pieces else caller.chat)
            if ranges is not None:
                if ranges == self._ranges(rendered.text):
                    return None
                found = ((field, token) for field, token, _ in caller.each_field() if token)
                return TemplateTokens(ranges, *next(found, ("prompt.chat.messages", "")))
        raise _refusal(caller)

    def _ranges(self, text: str) -> tuple[Range, ...]:
        return tuple(Range(*match.span()) for match in self._pattern.finditer(text))

    def are_exact(self, encoding: Encoding, rendered: str) -> bool:
        """Whether each control token in `encoding` was read from its own characters, not from others that a normalizer
        changes to these."""
        contents, ids = {self._backend.token_to_id(each): each for each in self.contents}, np.array(encoding.ids)
        for at in np.flatnonzero(np.isin(ids, list(contents))).tolist():
            start, end = encoding.token_to_chars(at) or (0, 0)
            if contents[int(ids[at])] not in rendered[start:end]:
                return False
        return True

    def encode(self, rendered: str, tokens: TemplateTokens | None = None) -> Encoding:
        """The tokens of `rendered`. Control tokens that are not in `tokens` are text; None: all are control tokens.
        Raises InvalidRequest if the tokenizer cannot read them as text."""
        field, token = (tokens.field, tokens.token) if tokens else ("prompt.chat.messages", "")
        value = f"text with {f'the control token {token}' if token else 'control tokens'}"
        if self._renamed is None:
            raise InvalidRequest(field, value, "text without control tokens of this tokenizer")
        if re.search(any_of(list(map(self._name, self.contents))), rendered):
            raise InvalidRequest(field, f"{value} and private-use characters", "text without both")
        ranges = self._ranges(rendered) if tokens is None else tokens.ranges
        pieces, at = list[str](), 0
        for each in ranges:
            pieces += [rendered[at : each.start], self._name(rendered[each.start : each.end])]
            at = each.end
        renamed = "".join([*pieces, rendered[at:]])
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


def _is_control(token: AddedToken, samples: str) -> bool:
    if REASONING_TAGS.fullmatch(token.content) or _SWITCH.fullmatch(token.content):
        return False
    is_mark = _MARK.fullmatch(token.content) and (not _TAG.fullmatch(token.content) or token.content in samples)
    return bool(token.special or is_mark)


def _refusal(caller: CallerTokens) -> InvalidRequest:
    """Names the first field with a control token that the template reads, and the token."""
    found = ("prompt.chat.messages", "control tokens")
    for field, token, alone in islice(caller.each_field(), MAX_RENDERINGS):
        if caller.template_ranges(alone) is None:
            found = (field, f"the control token {token}" if token else "a part of a control token")
            break
    return InvalidRequest(found[0], f"text with {found[1]}", "text without one that the chat template reads")
