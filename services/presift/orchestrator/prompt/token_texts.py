"""The text and the bytes of single tokens, for log probabilities.

A token may be a part of a character: its bytes are then no UTF-8. Decoding the token alone would lose them.
"""

from __future__ import annotations

import json
import re
from functools import cached_property

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"


class TokenTexts:
    """The bytes of the tokens of `backend`. Without a tokenizer (None) all are empty."""

    def __init__(self, backend: Tokenizer | None) -> None:
        self._backend = backend

    def raw(self, token_id: int) -> bytes:
        """The bytes of a token; empty for an unknown id."""
        piece = None if self._backend is None else self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id in self._added:
            return self._added[token_id].encode()
        return self._piece_bytes(piece)

    def text(self, token_id: int) -> str:
        """The text of a token; incomplete characters are replaced."""
        return self.raw(token_id).decode("utf-8", "replace")

    def key(self, token_id: int) -> str:
        """The text, or `bytes:\\xe2\\x80` for a part of a character, as OpenAI writes it: different tokens stay
        different."""
        raw = self.raw(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of an answer's text."""
        return token_id in self._special

    def _piece_bytes(self, piece: str) -> bytes:
        if self._is_byte_level:
            values = [_BYTES.get(character) for character in piece]
            known = bytes(value for value in values if value is not None)
            return known if len(known) == len(values) else piece.encode()
        if (byte := _BYTE_TOKEN.fullmatch(piece)) is not None and "ByteFallback" in self._decoder:
            return bytes((int(byte[1], 16),))
        return (piece.replace(_WORD_START, " ") if _WORD_START in self._decoder else piece).encode()

    @cached_property
    def _decoder(self) -> str:
        decoder = None if self._backend is None else self._backend.decoder
        return "" if decoder is None else json.dumps(json.loads(decoder.__getstate__()), ensure_ascii=False)

    @cached_property
    def _is_byte_level(self) -> bool:
        return '"ByteLevel"' in self._decoder

    @cached_property
    def _added(self) -> dict[int, str]:
        added = {} if self._backend is None else self._backend.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items()}

    @cached_property
    def _special(self) -> frozenset[int]:
        added = {} if self._backend is None else self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte: printable ones are themselves, the others follow from
    U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_alphabet()
