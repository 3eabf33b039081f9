"""Tokenizes prompts: chat, text or token ids become the target's token ids with protected spans."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint
from presift.core.spans import Span, check_within, merge
from presift.orchestrator.domain.request import Chat, Prompt, Text, TokenIds, TokenizedPrompt
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.prompt.chat_frame import Range
from presift.orchestrator.prompt.chat_renderer import ChatRenderer, ChatTemplate
from presift.orchestrator.prompt.chat_texts import strings
from presift.orchestrator.prompt.control_tokens import ControlTokens
from presift.orchestrator.prompt.protected_tokens import protected_kinds, protected_spans
from presift.orchestrator.prompt.raw_tokens import encoding_of, without_first_token
from presift.orchestrator.prompt.rendered_prompt import RenderedPrompt, read_chat
from presift.orchestrator.prompt.tokenizing_limit import TokenizingLimit, byte_count, check_length
from presift.rpc.large_input import in_thread_if_large

# Longer prompts take milliseconds and are rendered and tokenized in a thread.
INLINE_CHARACTERS = 8_192
# Rendering a string takes about as long as tokenizing so many characters.
_CHARACTERS_PER_STRING = 16
# Memory of a remembered prompt without its parts, and of a span with its numbers (measured, rounded up).
_PROMPT_BYTES, _SPAN_BYTES = 1024, 128


class PromptTokenizer:
    """Tokenizes prompts. Without a tokenizer (`backend` None), accepts only prompts of token ids.

    Remembers the tokens of recent prompts in up to `memory_bytes`: for a repeated prompt, tokenizing would cost more
    than the rest of the orchestrator's work. Keys are SHA-256 hashes that include the salt, so that response times do
    not reveal other tenants' prompts. No text is stored. `template_variables` are those that the template reads;
    `reads_parts`: it reads a content that is a list of parts.
    """

    def __init__(
        self,
        backend: Tokenizer | None,
        template: ChatTemplate | None,
        memory_bytes: int = 32 * 2**20,
        template_variables: frozenset[str] = frozenset(),
        *,
        reads_parts: bool = False,
    ) -> None:
        self.backend = backend
        self.template_variables = template_variables
        self.renderer = ChatRenderer(template, reads_parts=reads_parts)
        self.limit = TokenizingLimit()
        self._memory = LRUCache[bytes, TokenizedPrompt](memory_bytes, getsizeof=_memory_bytes)

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
            read = partial(self._read_with_key, prompt, salt)
            rendered, key = read() if is_quick else await asyncio.to_thread(read)
        with stage("tokenize"):
            return await self._tokenized(prompt, rendered, key, salt)

    def _read(self, prompt: Chat | Text) -> RenderedPrompt:
        if self.backend is None:
            raise InvalidRequest("prompt", "text", "token_ids: the target has no tokenizer")
        if isinstance(prompt, Text):
            text = without_first_token(self.backend, prompt.text)
            return RenderedPrompt(text, (Range(0, len(text)),))
        return read_chat(self.renderer.render(prompt), self._control)

    def _read_with_key(self, prompt: Chat | Text, salt: str) -> tuple[RenderedPrompt, bytes]:
        """The rendered prompt, and its key in memory."""
        rendered = self._read(prompt)
        return rendered, _key(prompt, rendered, salt)

    async def _tokenized(self, prompt: Chat | Text, rendered: RenderedPrompt, key: bytes, salt: str) -> TokenizedPrompt:
        """From memory, or encoded now."""
        known = self._memory.get(key)
        if known is not None:
            return known
        tokenized = replace(await self._encode(prompt, rendered), salt=salt, warnings=rendered.warnings)
        with suppress(ValueError):  # larger than the memory
            self._memory[key] = tokenized
        return tokenized

    def render(self, prompt: Chat | Text) -> str:
        """The text to tokenize, with the chat template applied. Raises as `tokenize` does."""
        return self._read(prompt).text

    async def render_with_offsets(self, prompt: Chat | Text) -> tuple[str, NDArray[np.int32]]:
        """The rendered prompt, and the characters [start, end) of each token in it, int32[tokens, 2]."""
        rendered = await asyncio.to_thread(self._read, prompt)

        def offsets() -> NDArray[np.int32]:
            return np.array(self._encoding(prompt, rendered).offsets, dtype=np.int32).reshape(-1, 2)

        return rendered.text, await self.limit.run(offsets, await _byte_count(rendered.text))

    @cached_property
    def _control(self) -> ControlTokens | None:
        return None if self.backend is None else ControlTokens(self.backend, self.renderer.samples())

    async def _encode(self, prompt: Chat | Text, rendered: RenderedPrompt) -> TokenizedPrompt:
        size = await _byte_count(rendered.text)

        def encode() -> TokenizedPrompt:
            check_length(self.backend, rendered.text, size)
            encoding = self._encoding(prompt, rendered)
            spans = protected_spans(encoding, rendered.droppable, len(rendered.text))
            kinds = protected_kinds(encoding, rendered.protected, spans, len(rendered.text))
            return TokenizedPrompt(np.array(encoding.ids, dtype=np.uint32), spans, protected_kinds=kinds)

        # The first prompt with control tokens copies the tokenizer, which takes a second.
        is_quick = len(rendered.text) <= INLINE_CHARACTERS and rendered.template_tokens is None
        if is_quick:
            return encode()
        return await self.limit.run(encode, size)

    def _encoding(self, prompt: Chat | Text, rendered: RenderedPrompt) -> Encoding:
        if rendered.template_tokens is not None and self._control is not None:
            return self._control.encode(rendered.text, rendered.template_tokens)
        # A chat template writes the special tokens itself; for plain text the tokenizer adds them.
        if isinstance(prompt, Text) or self._control is None:
            return encoding_of(self.backend, rendered.text, add_special_tokens=True)
        encoding = encoding_of(self.backend, rendered.text, add_special_tokens=False)
        if self._control.are_exact(encoding, rendered.text):
            return encoding
        return self._control.encode(rendered.text)


async def _byte_count(text: str) -> int:
    """As `byte_count`, which encodes what is not ASCII: 32 MiB at most."""
    return len(text) if text.isascii() else await in_thread_if_large(len(text), partial(byte_count, text))


def _memory_bytes(prompt: TokenizedPrompt) -> int:
    texts = [*prompt.warnings, prompt.salt, *(kind for kind, _ in prompt.protected_kinds)]
    return _PROMPT_BYTES + prompt.ids.nbytes + _SPAN_BYTES * len(prompt.protected) + 4 * sum(map(len, texts))


def _size(prompt: Chat | Text) -> int:
    """The characters of a text that takes about the same time."""
    if isinstance(prompt, Text):
        return len(prompt.text)
    lengths = list(map(len, filter(None, strings(prompt))))
    return sum(lengths) + _CHARACTERS_PER_STRING * len(lengths)


def _protected_ids(prompt: TokenIds) -> tuple[Span, ...]:
    """The protected spans in canonical form. Raises InvalidRequest for one that is not within the prompt."""
    check_within(prompt.protected, int(prompt.ids.size))
    return merge(prompt.protected)


def _key(prompt: Chat | Text, rendered: RenderedPrompt, salt: str) -> bytes:
    tokens = None if rendered.template_tokens is None else _pairs(rendered.template_tokens.ranges)
    protected = [(kind, each.start, each.end) for kind, each in rendered.protected]
    marks = [_pairs(rendered.droppable), tokens, protected, rendered.warnings]
    # The salt's length comes first, so that salt and prompt cannot be split in another way.
    return hashlib.sha256(f"{len(salt)}\n{salt}\n{type(prompt).__name__}\n{marks}\n{rendered.text}".encode()).digest()


def _pairs(ranges: Iterable[Range]) -> list[tuple[int, int]]:
    return [(each.start, each.end) for each in ranges]
