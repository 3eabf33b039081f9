"""Streaming detokenizer: the text of an answer, in whole characters, up to a stop string.

All pieces together are what the tokenizer's `decode` makes of all tokens. The one exception: byte tokens of a
byte-fallback tokenizer that are not UTF-8. `decode` then also replaces the valid characters next to them; here only the
invalid bytes become U+FFFD, because the valid ones were shown already.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

from presift.core.stop_strings import StopStrings
from presift.orchestrator.prompt.token_bytes import BYTE_TOKEN, bytes_of, decoder_kinds, special_ids


class Detokenizer:
    """The text of one answer. Without a tokenizer (`backend` None) all text is empty.

    No text waits for more than three tokens, except the beginning of a stop string. The cost is linear.
    """

    def __init__(self, backend: Tokenizer | None, stop: Sequence[str] = (), *, keeps_special: bool = False) -> None:
        self._has_stops = bool(stop)
        self._stops = StopStrings(stop)
        self._decoder = None if backend is None else _decoder(backend)
        self._skipped = frozenset() if backend is None or keeps_special else special_ids(backend)

    @property
    def may_be_stopping(self) -> bool:
        """Whether a stop string may have begun in the tokens so far, also with a part of a character."""
        if not self._has_stops:
            return False
        return self._decoder is None or self._decoder.is_partial or self._stops.may_have_begun

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that can be shown after `token_ids`."""
        if self._decoder is None:
            return ""
        shown = (self._decoder.text(token_id) for token_id in token_ids if token_id not in self._skipped)
        return self._stops.push("".join(shown))

    def finish(self) -> str:
        """The text that was held back, at the end of the answer."""
        rest = "" if self._decoder is None else self._stops.push(self._decoder.rest())
        return rest + self._stops.finish()


class _Decoder(Protocol):
    """The tokens of one answer, in order."""

    def text(self, token_id: int) -> str:
        """The new whole characters."""
        ...

    @property
    def is_partial(self) -> bool:
        """Whether the tokens end inside a character."""
        ...

    def rest(self) -> str:
        """What is left at the end: an incomplete character is U+FFFD."""
        ...


class _ByteLevel:
    """Byte-level BPE: each character of a token stands for a byte."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, token_id: int) -> str:
        return self._utf8.decode(bytes_of(self._backend.id_to_token(token_id) or ""))

    @property
    def is_partial(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def rest(self) -> str:
        return self._utf8.decode(b"", True)


class _Pieces:
    """Other tokenizers: the text of a token depends on its predecessor. Some have a token for each byte too."""

    def __init__(self, backend: Tokenizer, *, has_byte_tokens: bool) -> None:
        self._backend = backend
        self._has_byte_tokens = has_byte_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._before = list[int]()

    def text(self, token_id: int) -> str:
        token = self._backend.id_to_token(token_id)
        if token is None:
            return ""
        before, self._before = self._before, [token_id]
        byte = BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        if byte is None:
            return self.rest() + self._decode([*before, token_id])[len(self._decode(before)) :]
        if not before and not self._decode([token_id]):
            return ""  # a space at the beginning of the answer
        return self._utf8.decode(bytes.fromhex(byte[1]))

    @property
    def is_partial(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def rest(self) -> str:
        rest = self._utf8.decode(b"", True)
        self._utf8.reset()
        return rest

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=False) if token_ids else ""


def _decoder(backend: Tokenizer) -> _Decoder:
    kinds = decoder_kinds(backend)
    if kinds == ("ByteLevel",):
        return _ByteLevel(backend)
    return _Pieces(backend, has_byte_tokens="ByteFallback" in kinds)
