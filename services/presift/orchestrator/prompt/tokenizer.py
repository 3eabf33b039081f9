"""Renders and tokenizes prompts: chat, text or token ids become the target's token ids with protected spans."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from cachetools import LRUCache
from tokenizers import Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint
from presift.core.spans import Span, check_within, merge
from presift.orchestrator.domain.request import Chat, Prompt, Text, TokenIds, TokenizedPrompt
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.prompt.chat_frame import ChatFrame, Range, find_texts, with_placeholders
from presift.orchestrator.prompt.chat_tools import check_tools_rendered, parse_tools, parse_variables
from presift.orchestrator.prompt.control_tokens import ControlTokens, turns_of
from presift.orchestrator.prompt.protected_tokens import protected_kinds, protected_spans
from presift.orchestrator.prompt.protection import droppable_ranges, protected_ranges
from presift.orchestrator.prompt.raw_tokens import encoding_of, without_first_token
from presift.orchestrator.prompt.template_messages import template_messages

# Longer prompts take milliseconds and are rendered and tokenized in a thread.
INLINE_CHARACTERS = 8_192
# Rendering a string takes about as long as tokenizing so many characters.
_CHARACTERS_PER_STRING = 16


class ChatTemplate(Protocol):
    """Renders a chat to the target's prompt format. Raises InvalidRequest."""

    def __call__(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, *, variables: dict[str, Any], continues: bool
    ) -> str:
        """`continues`: the prompt ends with the last message's text, for the answer to continue it."""
        ...


class PromptTokenizer:
    """Tokenizes prompts. Without a tokenizer (`backend` None), accepts only prompts of token ids.

    Remembers the tokens of recent prompts, up to `memory_tokens` in total: for a repeated prompt, tokenizing would cost
    more than the rest of the orchestrator's work. Keys are SHA-256 hashes that include the salt, so that response times
    do not reveal other tenants' prompts. No text is stored. `template_variables` are those that the template reads;
    `reads_parts`: it reads a content that is a list of parts.
    """

    def __init__(
        self,
        backend: Tokenizer | None,
        template: ChatTemplate | None,
        memory_tokens: int = 4_000_000,
        template_variables: frozenset[str] = frozenset(),
        *,
        reads_parts: bool = False,
    ) -> None:
        self.backend = backend
        self.template_variables = template_variables
        self._template = template
        self._reads_parts = reads_parts
        # At least 1 each: prompts without tokens must not fill the memory.
        self._memory = LRUCache[bytes, TokenizedPrompt](memory_tokens, getsizeof=lambda each: max(1, each.ids.size))

    def fingerprint(self) -> str:
        """Comparable with ModelInfo's; empty without a tokenizer."""
        return "" if self.backend is None else fingerprint(self.backend.to_str().encode())

    async def tokenize(self, prompt: Prompt, salt: str = "") -> TokenizedPrompt:
        """Raises InvalidRequest for invalid or unsupported tools, for messages that the chat template refuses or leaves
        out, for control tokens that cannot be read as text, and for text if there is no tokenizer."""
        if isinstance(prompt, TokenIds):
            with stage("protect"):
                return TokenizedPrompt(prompt.ids, _protected_ids(prompt), salt)
        with stage("protect"):
            is_quick = _size(prompt) <= INLINE_CHARACTERS
            rendered = self._rendered(prompt) if is_quick else await asyncio.to_thread(self._rendered, prompt)
        with stage("tokenize"):
            return await self._tokenized(prompt, rendered, salt)

    def _rendered(self, prompt: Chat | Text) -> _Rendered:
        text = self.render(prompt)
        if isinstance(prompt, Text):
            return _Rendered(text, (Range(0, len(text)),))
        calls_left_out = check_tools_rendered(prompt, text, self.render)
        frame = find_texts(prompt, text, self.render)
        _check_left_out(prompt, frame)
        return _Rendered(
            text,
            droppable_ranges(prompt, frame),
            protected_ranges(prompt, frame),
            () if self._control is None else self._control.texts_in(prompt, text, self.render),
            _warnings(prompt, frame, calls_left_out),
        )

    async def _tokenized(self, prompt: Chat | Text, rendered: _Rendered, salt: str) -> TokenizedPrompt:
        """From memory, or encoded now."""
        key = _key(prompt, rendered, salt)
        known = self._memory.get(key)
        if known is not None:
            return known
        tokenized = replace(await self._encode(prompt, rendered), salt=salt, warnings=rendered.warnings)
        with suppress(ValueError):  # larger than the memory
            self._memory[key] = tokenized
        return tokenized

    def render(self, prompt: Chat | Text) -> str:
        """The text to tokenize, with the chat template applied. Raises InvalidRequest."""
        if self.backend is None:
            raise InvalidRequest("prompt", "text", "token_ids: the target has no tokenizer")
        if isinstance(prompt, Text):
            return without_first_token(self.backend, prompt.text)
        try:
            return self._with_template(prompt)
        except InvalidRequest as error:
            raise self._with_reason(error, prompt) from error.__cause__

    def _with_template(self, chat: Chat) -> str:
        """Raises InvalidRequest, caused by the template's error if it refuses the chat."""
        if self._template is None:
            raise InvalidRequest("prompt", "chat", "text or token_ids: the target has no chat template")
        messages = template_messages(chat, reads_parts=self._reads_parts)
        tools, variables, continues = parse_tools(chat) or None, parse_variables(chat), chat.continue_final_message
        try:
            return self._template(messages, tools, variables=variables, continues=continues)
        except InvalidRequest:
            # Some templates read lists of parts in users' messages only.
            joined = template_messages(chat)
            if joined != messages:
                with suppress(InvalidRequest):
                    return self._template(joined, tools, variables=variables, continues=continues)
            raise

    def _with_reason(self, error: InvalidRequest, chat: Chat) -> InvalidRequest:
        """The error with the template's own reason, unless that quotes the caller: then the template gives another one
        for placeholders."""
        if error.__cause__ is None:
            return error
        try:
            self._with_template(with_placeholders(chat, frozenset(range(len(chat.messages)))))
        except InvalidRequest as other:
            reason = str(error.__cause__)
            if reason and reason == str(other.__cause__):
                return InvalidRequest(error.field, error.value, f"{error.limit}, which says: {reason[:200]}")
        return error

    def render_with_offsets(self, prompt: Chat | Text) -> tuple[str, list[tuple[int, int]]]:
        """The rendered prompt, and the characters [start, end) of each token in it."""
        rendered = self._rendered(prompt)
        return rendered.text, list(self._encoding(prompt, rendered).offsets)

    @cached_property
    def _control(self) -> ControlTokens | None:
        return None if self.backend is None else ControlTokens(self.backend, turns_of(self.render))

    async def _encode(self, prompt: Chat | Text, rendered: _Rendered) -> TokenizedPrompt:
        def encode() -> TokenizedPrompt:
            encoding = self._encoding(prompt, rendered)
            spans = protected_spans(encoding, rendered.droppable, len(rendered.text))
            kinds = protected_kinds(encoding, rendered.protected, spans, len(rendered.text))
            return TokenizedPrompt(np.array(encoding.ids, dtype=np.uint32), spans, protected_kinds=kinds)

        # The first prompt with control tokens copies the tokenizer, which takes a second.
        is_quick = len(rendered.text) <= INLINE_CHARACTERS and not rendered.control_texts
        return encode() if is_quick else await asyncio.to_thread(encode)

    def _encoding(self, prompt: Chat | Text, rendered: _Rendered) -> Encoding:
        if rendered.control_texts and self._control is not None:
            return self._control.encode(rendered.text, rendered.control_texts)
        # A chat template writes the special tokens itself; for plain text the tokenizer adds them.
        if isinstance(prompt, Text) or self._control is None:
            return encoding_of(self.backend, rendered.text, add_special_tokens=True)
        encoding = encoding_of(self.backend, rendered.text, add_special_tokens=False)
        if self._control.are_exact(encoding, rendered.text):
            return encoding
        return self._control.encode(rendered.text, ())


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A rendered prompt: its droppable characters, the protected texts with what they are, the control tokens that are
    text, and warnings on its messages."""

    text: str
    droppable: tuple[Range, ...]
    protected: tuple[tuple[str, Range], ...] = ()
    control_texts: tuple[Range, ...] = ()
    warnings: tuple[str, ...] = ()


def _check_left_out(chat: Chat, frame: ChatFrame) -> None:
    """Raises InvalidRequest for a message that the template leaves out, except for an answer: of that, templates may
    leave out the text, for example beside tool calls."""
    lost = [at for at in frame.left_out if chat.messages[at].role != "assistant"]
    if lost:
        message = chat.messages[lost[0]]
        way = "it out, or a part of it: send one text" if len(message.parts) > 1 else "it out"
        value, limit = f"role {message.role}", f"a message that the chat template shows: it leaves {way}"
        raise InvalidRequest(f"prompt.chat.messages[{lost[0]}]", value, limit)


def _warnings(chat: Chat, frame: ChatFrame, calls_left_out: Sequence[int]) -> tuple[str, ...]:
    """What the template did with messages that the caller may not expect."""
    messages = len(chat.messages)
    rewritten = [at for at in frame.rewritten if at >= messages or chat.messages[at].role != "system"]
    warnings = []
    if rewritten:
        warnings.append(f"the chat template rewrites {_listed(rewritten, messages)}: nothing of that is dropped")
    if frame.left_out:
        warnings.append(f"the chat template leaves out the text of {_listed(frame.left_out, messages)}")
    if calls_left_out:
        warnings.append(f"the chat template leaves out tool calls of {_listed(calls_left_out, messages)}")
    return tuple(warnings)


def _listed(places: Sequence[int], messages: int, most: int = 8) -> str:
    """The first `most` of `places` as the caller's fields: those beyond the number of `messages` are tools."""
    more = f" and {len(places) - most} more" if len(places) > most else ""
    names = (f"messages[{at}]" if at < messages else f"tools[{at - messages}]" for at in places[:most])
    return ", ".join(names) + more


def _size(prompt: Chat | Text) -> int:
    """The characters of a text that takes about the same time."""
    if isinstance(prompt, Text):
        return len(prompt.text)
    strings = [prompt.template_kwargs_json, *prompt.tools_json]
    for message in prompt.messages:
        strings += [message.reasoning, *message.tool_calls_json, *(part.text for part in message.parts)]
    return sum(map(len, strings)) + _CHARACTERS_PER_STRING * len(strings)


def _protected_ids(prompt: TokenIds) -> tuple[Span, ...]:
    """The protected spans in canonical form. Raises InvalidRequest for one that is not within the prompt."""
    check_within(prompt.protected, int(prompt.ids.size))
    return merge(prompt.protected)


def _key(prompt: Chat | Text, rendered: _Rendered, salt: str) -> bytes:
    droppable, control_texts = (
        [(each.start, each.end) for each in ranges] for ranges in (rendered.droppable, rendered.control_texts)
    )
    protected = [(kind, each.start, each.end) for kind, each in rendered.protected]
    marks = [droppable, control_texts, protected, rendered.warnings]
    # The salt's length comes first, so that salt and prompt cannot be split in another way.
    return hashlib.sha256(f"{len(salt)}\n{salt}\n{type(prompt).__name__}\n{marks}\n{rendered.text}".encode()).digest()
