"""Renders and tokenizes prompts: chat, text or token ids become the target's token ids with protected spans."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from cachetools import LRUCache
from tokenizers import Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint
from presift.core.spans import Span, covered, merge, spans_of
from presift.orchestrator.domain.request import Chat, Prompt, Text, TokenIds, TokenizedPrompt
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.prompt.chat_tools import check_tools_rendered, parse_tools, parse_variables
from presift.orchestrator.prompt.protection import Range, droppable_ranges, template_messages, with_placeholders

# Longer prompts take milliseconds and are tokenized in a thread (the Rust tokenizer releases the GIL).
INLINE_CHARACTERS = 8_192


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
    do not reveal other tenants' prompts. No text is stored. `template_variables` are those that the template reads.
    """

    def __init__(
        self,
        backend: Tokenizer | None,
        template: ChatTemplate | None,
        memory_tokens: int = 4_000_000,
        template_variables: frozenset[str] = frozenset(),
    ) -> None:
        self.backend = backend
        self.template_variables = template_variables
        self._template = template
        # At least 1 each: prompts without tokens must not fill the memory.
        self._memory = LRUCache[bytes, TokenizedPrompt](memory_tokens, getsizeof=lambda each: max(1, each.ids.size))

    def fingerprint(self) -> str:
        """Comparable with ModelInfo's; empty without a tokenizer."""
        return "" if self.backend is None else fingerprint(self.backend.to_str().encode())

    async def tokenize(self, prompt: Prompt, salt: str = "") -> TokenizedPrompt:
        """Raises InvalidRequest for invalid or unsupported tools, and for text if there is no tokenizer."""
        if isinstance(prompt, TokenIds):
            with stage("protect"):
                return TokenizedPrompt(prompt.ids, _within(prompt), salt)
        with stage("protect"):
            rendered = self.render(prompt)
            ranges = self._droppable_ranges(prompt, rendered)
        with stage("tokenize"):
            return await self._tokenized(prompt, rendered, ranges, salt)

    async def _tokenized(
        self, prompt: Chat | Text, rendered: str, ranges: tuple[Range, ...], salt: str
    ) -> TokenizedPrompt:
        """From memory, or encoded now."""
        key = _key(prompt, rendered, ranges, salt)
        known = self._memory.get(key)
        if known is not None:
            return known
        tokenized = replace(await self._encode(prompt, rendered, ranges), salt=salt)
        with suppress(ValueError):  # larger than the memory
            self._memory[key] = tokenized
        return tokenized

    def render(self, prompt: Chat | Text) -> str:
        """The text to tokenize, with the chat template applied."""
        if self.backend is None:
            raise InvalidRequest("prompt", "text", "token_ids: the target has no tokenizer")
        if isinstance(prompt, Text):
            return prompt.text
        if self._template is None:
            raise InvalidRequest("prompt", "chat", "text or token_ids: the target has no chat template")
        return self._template(
            template_messages(prompt),
            parse_tools(prompt) or None,
            variables=parse_variables(prompt),
            continues=prompt.continue_final_message,
        )

    def render_with_offsets(self, prompt: Chat | Text) -> tuple[str, list[tuple[int, int]]]:
        """The rendered prompt, and the characters [start, end) of each token in it."""
        rendered = self.render(prompt)
        return rendered, list(_tokens(self.backend, rendered, isinstance(prompt, Text)).offsets)

    def _droppable_ranges(self, prompt: Chat | Text, rendered: str) -> tuple[Range, ...]:
        if isinstance(prompt, Text):
            return (Range(0, len(rendered)),)
        frame = with_placeholders(prompt)
        rendered_frame = self.render(frame)
        check_tools_rendered(frame, rendered_frame, self.render)
        return droppable_ranges(prompt, rendered, rendered_frame)

    async def _encode(self, prompt: Chat | Text, rendered: str, ranges: tuple[Range, ...]) -> TokenizedPrompt:
        def encode() -> TokenizedPrompt:
            encoding = _tokens(self.backend, rendered, isinstance(prompt, Text))
            return TokenizedPrompt(
                np.array(encoding.ids, dtype=np.uint32), protected_spans(encoding, ranges, len(rendered))
            )

        return encode() if len(rendered) <= INLINE_CHARACTERS else await asyncio.to_thread(encode)


def protected_spans(encoding: Encoding, ranges: tuple[Range, ...], characters: int) -> tuple[Span, ...]:
    """The tokens that do not lie wholly inside `ranges`. A token that crosses a range's border is protected."""
    protected = np.ones(len(encoding.ids), dtype=np.bool_)
    for droppable in _joined(ranges):
        start = _first_token_from(encoding, droppable.start, characters)
        end = _first_token_from(encoding, droppable.end, characters)
        while start < end and encoding.token_to_chars(start)[0] < droppable.start:
            start += 1
        # Special tokens that the tokenizer adds have no characters.
        while start < end and ((held := encoding.token_to_chars(end - 1)) is None or held[1] > droppable.end):
            end -= 1
        protected[start:end] = False
    return spans_of(protected)


def _joined(ranges: tuple[Range, ...]) -> list[Range]:
    """Adjacent ranges merged into one: a token across their common border may be dropped."""
    joined = list[Range]()
    for each in ranges:
        start = joined.pop().start if joined and joined[-1].end == each.start else each.start
        joined.append(Range(start, each.end))
    return joined


def _first_token_from(encoding: Encoding, character: int, characters: int) -> int:
    """The first token that contains `character` or, if a normaliser dropped it, the next character that has a token."""
    for at in range(character, characters):
        token = encoding.char_to_token(at)
        if token is not None:
            return int(token)
    return len(encoding.ids)


def _tokens(backend: Tokenizer | None, rendered: str, add_special_tokens: bool) -> Encoding:
    if backend is None:
        raise InvalidRequest("prompt", "text", "token_ids: the target has no tokenizer")
    # A chat template writes the special tokens itself; for plain text the tokenizer adds them.
    return backend.encode(rendered, add_special_tokens=add_special_tokens)


def _within(prompt: TokenIds) -> tuple[Span, ...]:
    covered(prompt.protected, int(prompt.ids.size))
    return merge(prompt.protected)


def _key(prompt: Chat | Text, rendered: str, ranges: tuple[Range, ...], salt: str) -> bytes:
    marks = ",".join(f"{each.start}-{each.end}" for each in ranges)
    # The salt's length comes first, so that salt and prompt cannot be split in another way.
    return hashlib.sha256(f"{len(salt)}\n{salt}\n{type(prompt).__name__}\n{marks}\n{rendered}".encode()).digest()
