"""Bounds the memory of tokenizing: until its ids are copied, an encoding takes a hundred times as much as its text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from tokenizers import Tokenizer

from presift.core.errors import PromptTooLong
from presift.core.limits import MAX_PROMPT_TOKENS
from presift.orchestrator.prompt.raw_tokens import text_of
from presift.rpc.tasks import retrieve_error

T = TypeVar("T")

# Memory of a token in an encoding, with Python's list of its offsets, and of a byte of the text meanwhile (measured,
# rounded up).
ENCODING_BYTES = 416
TEXT_BYTES = 66
# Of UTF-8. A rendered chat is longer than its texts by its template, tools and calls.
MAX_TEXT_BYTES = 10 * 2**20
# Shorter texts do not wait for longer ones.
SHORT_BYTES = 2**18
# Bytes of text that are tokenized at once, of short texts and of long ones: a text has at most one token per byte.
AT_ONCE_BYTES = MAX_PROMPT_TOKENS
_PIECE_CHARACTERS, _PIECE_TOKENS = 65_536, 8192
# A token that crosses the border of two pieces becomes several.
_SLACK_TOKENS = 16


def byte_count(text: str) -> int:
    """The length in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


class TokenizingLimit:
    """Two queues, first come, first served. A text that is longer than AT_ONCE_BYTES is tokenized alone."""

    def __init__(self) -> None:
        self._short, self._long = _Queue(), _Queue()

    async def run(self, encode: Callable[[], T], size: int) -> T:
        """Wait until a text of `size` bytes may be tokenized, then run `encode` in a thread.

        If the caller is cancelled, the text counts until the thread is done.
        """
        queue = self._short if size <= SHORT_BYTES else self._long
        await queue.enter(size)
        encoding = asyncio.create_task(asyncio.to_thread(encode))

        def ended(task: asyncio.Task[T]) -> None:
            queue.leave(size)
            retrieve_error(task)

        encoding.add_done_callback(ended)
        return await asyncio.shield(encoding)


class _Queue:
    def __init__(self) -> None:
        self._first = asyncio.Lock()
        self._freed = asyncio.Event()
        self._held = 0

    async def enter(self, size: int) -> None:
        async with self._first:
            while self._held and self._held + size > AT_ONCE_BYTES:
                self._freed.clear()
                await self._freed.wait()
            self._held += size

    def leave(self, size: int) -> None:
        self._held -= size
        self._freed.set()


def check_text_length(backend: Tokenizer | None, token_ids: Sequence[int]) -> None:
    """Raise PromptTooLong for token ids whose text has more than MAX_TEXT_BYTES, before all of it is in memory.

    The texts of the pieces are only counted: joined, they lack the characters that cross their borders.
    """
    if backend is None or len(token_ids) <= _PIECE_TOKENS:
        return
    size = 0
    for at in range(0, len(token_ids), _PIECE_TOKENS):
        size += byte_count(text_of(backend, token_ids[at : at + _PIECE_TOKENS], skip_special_tokens=False))
        if size > MAX_TEXT_BYTES:
            raise PromptTooLong("tokens", f"text of more than {MAX_TEXT_BYTES} bytes", f"at most {MAX_TEXT_BYTES}")


def check_length(backend: Tokenizer | None, text: str, size: int) -> None:
    """Raise PromptTooLong for a text of `size` bytes that has more than MAX_TEXT_BYTES, or clearly more than
    MAX_PROMPT_TOKENS, before all of its tokens are in memory."""
    if backend is None or size <= MAX_PROMPT_TOKENS:
        return
    if size > MAX_TEXT_BYTES:
        raise PromptTooLong("prompt", f"{size} bytes of UTF-8", f"at most {MAX_TEXT_BYTES}")
    tokens = 0
    for at in range(0, len(text), _PIECE_CHARACTERS):
        piece = text[at : at + _PIECE_CHARACTERS]
        tokens += len(backend.encode_batch([piece], add_special_tokens=False)[0]) - _SLACK_TOKENS
        if tokens > MAX_PROMPT_TOKENS:
            limit = f"at most {MAX_PROMPT_TOKENS}"
            raise PromptTooLong("prompt", f"more than {MAX_PROMPT_TOKENS} tokens", limit)
