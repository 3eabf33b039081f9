"""Bounds the memory of tokenizing: until its ids are copied, an encoding takes a hundred times as much as its text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from tokenizers import Tokenizer

from presift.core.errors import PromptTooLong
from presift.core.limits import MAX_PROMPT_TOKENS

T = TypeVar("T")

# Memory of a token in an encoding (measured, rounded up).
ENCODING_BYTES = 288
# Of a byte of the text meanwhile (measured with ASCII text of 8 MiB).
TEXT_BYTES = 66
# Shorter texts do not wait for longer ones.
SHORT_BYTES = 2**18
# Bytes of text that are tokenized at once, of short texts and of long ones: a text has at most one token per byte.
AT_ONCE_BYTES = MAX_PROMPT_TOKENS
_PIECE_CHARACTERS = 65_536
# A token that crosses the border of two pieces becomes several.
_SLACK_TOKENS = 16


def byte_count(text: str) -> int:
    """The length in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


class BytesAtOnce:
    """Work in threads, first come, first served, that holds at most `limit` bytes. Work that holds more runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._first = asyncio.Lock()
        self._freed = asyncio.Event()
        self._held = 0

    async def run(self, work: Callable[[], T], size: int) -> T:
        """Wait until `size` bytes may be held, then run `work` in a thread.

        If the caller is cancelled, they count until the thread is done.
        """
        async with self._first:
            while self._held and self._held + size > self._limit:
                self._freed.clear()
                await self._freed.wait()
            self._held += size
        working = asyncio.create_task(asyncio.to_thread(work))

        def ended(task: asyncio.Task[T]) -> None:
            self._held -= size
            self._freed.set()
            if not task.cancelled():
                task.exception()  # marks it as retrieved: a cancelled caller does not await it

        working.add_done_callback(ended)
        return await asyncio.shield(working)


class TokenizingLimit:
    """Two queues. A text that is longer than AT_ONCE_BYTES is tokenized alone."""

    def __init__(self) -> None:
        self._short, self._long = BytesAtOnce(AT_ONCE_BYTES), BytesAtOnce(AT_ONCE_BYTES)

    async def run(self, encode: Callable[[], T], size: int) -> T:
        """Run `encode` in a thread once a text of `size` bytes may be tokenized."""
        return await (self._short if size <= SHORT_BYTES else self._long).run(encode, size)


def check_length(backend: Tokenizer | None, text: str, size: int) -> None:
    """Raise PromptTooLong for a text of `size` bytes that has clearly more than MAX_PROMPT_TOKENS, before all of its
    tokens are in memory."""
    if backend is None or size <= MAX_PROMPT_TOKENS:
        return
    tokens = 0
    for at in range(0, len(text), _PIECE_CHARACTERS):
        piece = text[at : at + _PIECE_CHARACTERS]
        tokens += len(backend.encode_batch([piece], add_special_tokens=False)[0]) - _SLACK_TOKENS
        if tokens > MAX_PROMPT_TOKENS:
            limit = f"at most {MAX_PROMPT_TOKENS}"
            raise PromptTooLong("prompt", f"more than {MAX_PROMPT_TOKENS} tokens", limit)
