"""The text and the bytes of single tokens, for log probabilities.

A token may be a part of a character: its bytes are then no UTF-8. Decoding the token alone would lose them.
"""

from __future__ import annotations

from functools import cached_property

from tokenizers import Tokenizer

from presift.orchestrator.prompt.token_bytes import BYTE_TOKEN, bytes_of, decoder_kinds, decoder_state, special_ids

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
        if "ByteLevel" in self._kinds:
            return bytes_of(piece)
        if (byte := BYTE_TOKEN.fullmatch(piece)) is not None and "ByteFallback" in self._kinds:
            return bytes.fromhex(byte[1])
        return (piece.replace(_WORD_START, " ") if self._marks_words else piece).encode()

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        return () if self._backend is None else decoder_kinds(self._backend)

    @cached_property
    def _marks_words(self) -> bool:
        return self._backend is not None and _WORD_START in decoder_state(self._backend)

    @cached_property
    def _added(self) -> dict[int, str]:
        added = {} if self._backend is None else self._backend.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items()}

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset() if self._backend is None else special_ids(self._backend)
