"""The target's tokenizer and chat template: prompts become token ids with protected spans, token ids become text."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from tokenizers import Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint
from presift.core.spans import Span, covered, merge, spans_of
from presift.orchestrator.domain.request import Chat, Prompt, Text, TokenIds, TokenizedPrompt
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.prompt.chat_tools import check_rendered, tools_of
from presift.orchestrator.prompt.protection import Range, compressible, framed, template_messages

# Above this, tokenising takes milliseconds and moves off the event loop (the Rust tokenizer releases the GIL).
INLINE_CHARACTERS = 8_192


class ChatTemplate(Protocol):
    """Renders a chat to the text that the target was trained on."""

    def __call__(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str: ...


class PromptTokenizer:
    """Tokenises prompts. Without a tokenizer (`backend` None) only token-id prompts are accepted.

    The last prompts' tokens are remembered, up to `memory_tokens`: a prompt that hits the cache has been seen before,
    and tokenising it again would cost more than all the rest of the orchestrator's work. Keys are SHA-256 and cover the
    salt, so that nobody can tell by the time it takes what others have asked; no text is kept.
    """

    def __init__(
        self, backend: Tokenizer | None, template: ChatTemplate | None, memory_tokens: int = 4_000_000
    ) -> None:
        self._backend = backend
        self._template = template
        self._memory: OrderedDict[bytes, TokenizedPrompt] = OrderedDict()
        self._memory_tokens = memory_tokens
        self._held_tokens = 0

    def fingerprint(self) -> str:
        """As ModelInfo's; empty without a tokenizer."""
        return "" if self._backend is None else fingerprint(self._backend.to_str().encode())

    @property
    def backend(self) -> Tokenizer | None:
        return self._backend

    async def tokenize(self, prompt: Prompt, salt: str = "") -> TokenizedPrompt:
        """Raises InvalidRequest for tools that are no JSON or that the template has no place for, or for text where
        there is no tokenizer."""
        if isinstance(prompt, TokenIds):
            with stage("protect"):
                return TokenizedPrompt(prompt.ids, _within(prompt), salt)
        with stage("protect"):
            rendered = self.render(prompt)
            ranges = self._droppable(prompt, rendered)
        with stage("tokenize"):
            return await self._tokenized(prompt, rendered, ranges, salt)

    async def _tokenized(
        self, prompt: Chat | Text, rendered: str, ranges: tuple[Range, ...], salt: str
    ) -> TokenizedPrompt:
        """Remembered, or made now."""
        key = _key(prompt, rendered, ranges, salt)
        known = self._memory.get(key)
        if known is not None:
            self._memory.move_to_end(key)
            return known
        tokenized = replace(await self._encode(prompt, rendered, ranges), salt=salt)
        self._remember(key, tokenized)
        return tokenized

    def render(self, prompt: Chat | Text) -> str:
        """The text that is tokenised, chat template applied."""
        if self._backend is None:
            raise InvalidRequest("prompt", "text", "token_ids: the target has no tokenizer")
        if isinstance(prompt, Text):
            return prompt.text
        if self._template is None:
            raise InvalidRequest("prompt", "chat", "text or token_ids: the target has no chat template")
        return self._template(template_messages(prompt), tools_of(prompt) or None)

    def located(self, prompt: Chat | Text) -> tuple[str, list[tuple[int, int]]]:
        """The rendered prompt, and the characters [start, end) of each token in it."""
        rendered = self.render(prompt)
        return rendered, list(_tokens(self._backend, rendered, isinstance(prompt, Text)).offsets)

    def _droppable(self, prompt: Chat | Text, rendered: str) -> tuple[Range, ...]:
        if isinstance(prompt, Text):
            return (Range(0, len(rendered)),)
        frame = framed(prompt)
        rendered_frame = self.render(frame)
        check_rendered(frame, rendered_frame, self.render)
        return compressible(prompt, rendered, rendered_frame)

    async def _encode(self, prompt: Chat | Text, rendered: str, ranges: tuple[Range, ...]) -> TokenizedPrompt:
        def encode() -> TokenizedPrompt:
            encoding = _tokens(self._backend, rendered, isinstance(prompt, Text))
            return TokenizedPrompt(
                np.array(encoding.ids, dtype=np.uint32), protected_tokens(encoding, ranges, len(rendered))
            )

        return encode() if len(rendered) <= INLINE_CHARACTERS else await asyncio.to_thread(encode)

    def _remember(self, key: bytes, tokenized: TokenizedPrompt) -> None:
        if key in self._memory or tokenized.ids.size > self._memory_tokens:
            return
        self._memory[key] = tokenized
        self._held_tokens += tokenized.ids.size
        while self._held_tokens > self._memory_tokens:
            _, oldest = self._memory.popitem(last=False)
            self._held_tokens -= oldest.ids.size


def protected_tokens(encoding: Encoding, ranges: tuple[Range, ...], characters: int) -> tuple[Span, ...]:
    """The tokens that do not lie wholly inside `ranges`. A token across a border to anything else is protected."""
    protected = np.ones(len(encoding.ids), dtype=np.bool_)
    for droppable in _joined(ranges):
        start = _first_token_from(encoding, droppable.start, characters)
        end = _first_token_from(encoding, droppable.end, characters)
        while start < end and encoding.token_to_chars(start)[0] < droppable.start:
            start += 1
        # The tokenizer's own special tokens hold no character.
        while start < end and ((held := encoding.token_to_chars(end - 1)) is None or held[1] > droppable.end):
            end -= 1
        protected[start:end] = False
    return spans_of(protected)


def _joined(ranges: tuple[Range, ...]) -> list[Range]:
    """Those that touch as one: what a token across their border holds may go."""
    joined = list[Range]()
    for each in ranges:
        start = joined.pop().start if joined and joined[-1].end == each.start else each.start
        joined.append(Range(start, each.end))
    return joined


def _first_token_from(encoding: Encoding, character: int, characters: int) -> int:
    """The first token that holds `character`, or the next that a token holds (normalisers drop some)."""
    for at in range(character, characters):
        token = encoding.char_to_token(at)
        if token is not None:
            return int(token)
    return len(encoding.ids)


def _tokens(backend: Tokenizer | None, rendered: str, add_special_tokens: bool) -> Encoding:
    if backend is None:
        raise InvalidRequest("prompt", "text", "token_ids: the target has no tokenizer")
    # A chat template writes its own special tokens; raw text gets the tokenizer's.
    return backend.encode(rendered, add_special_tokens=add_special_tokens)


def _within(prompt: TokenIds) -> tuple[Span, ...]:
    covered(prompt.protected, int(prompt.ids.size))
    return merge(prompt.protected)


def _key(prompt: Chat | Text, rendered: str, ranges: tuple[Range, ...], salt: str) -> bytes:
    marks = ",".join(f"{each.start}-{each.end}" for each in ranges)
    # The salt's length first: no salt may look like another one with a beginning of the prompt.
    return hashlib.sha256(f"{len(salt)}\n{salt}\n{type(prompt).__name__}\n{marks}\n{rendered}".encode()).digest()
