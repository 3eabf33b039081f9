"""How a tokenizer writes its tokens: the bytes that a token stands for, and which tokens are special."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


@lru_cache(maxsize=8)
def decoder_state(backend: Tokenizer) -> str:
    """The tokenizer's decoder as JSON; empty without one."""
    decoder = backend.decoder
    return "" if decoder is None else json.dumps(json.loads(decoder.__getstate__()), ensure_ascii=False)


@lru_cache(maxsize=8)
def decoder_kinds(backend: Tokenizer) -> tuple[str, ...]:
    """The types of the tokenizer's decoders, in order."""
    text = decoder_state(backend)
    if not text:
        return ()
    state = json.loads(text)
    return tuple(each["type"] for each in state.get("decoders", [state]))


@lru_cache(maxsize=8)
def special_ids(backend: Tokenizer) -> frozenset[int]:
    """The tokens that are left out of an answer's text."""
    return frozenset(token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special)


def bytes_of(token: str) -> bytes:
    """The bytes of a token of byte-level BPE; of an added token, which is text, its UTF-8."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode("utf-8", "replace")


def _byte_characters() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for themselves, the other bytes for those from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_characters()
