"""Text to token ids and back, without a chat template and without planning."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from presift.core.errors import InvalidRequest


def encode(backend: Tokenizer | None, text: str, *, add_special_tokens: bool) -> list[int]:
    """Raises InvalidRequest without a tokenizer."""
    if add_special_tokens:
        text = without_first_token(backend, text)
    ids: list[int] = encoding_of(backend, text, add_special_tokens=add_special_tokens).ids
    return ids


def encoding_of(backend: Tokenizer | None, text: str, *, add_special_tokens: bool) -> Encoding:
    """As `encode`, with offsets."""
    # Unlike the library's `encode`, this releases the GIL.
    return _known(backend, "prompt").encode_batch([text], add_special_tokens=add_special_tokens)[0]


def without_first_token(backend: Tokenizer | None, text: str) -> str:
    """`text` without the special token that the tokenizer adds in front. A client that has applied the chat template
    itself sends it, and the prompt would begin with it twice."""
    sample = encoding_of(backend, "a", add_special_tokens=True)
    first = sample.tokens[0] if sample.special_tokens_mask[:1] == [1] else ""
    return text.removeprefix(first) or text


def decode(backend: Tokenizer | None, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """Raises InvalidRequest without a tokenizer, and for ids that it does not have."""
    known = _known(backend, "tokens")
    highest = max(token_ids, default=0)
    # The size is asked for last: it takes some 30 ms for a large vocabulary.
    if known.id_to_token(highest) is None and highest >= (size := known.get_vocab_size(with_added_tokens=True)):
        raise InvalidRequest("tokens", highest, f"< {size} (the tokenizer's)")
    return text_of(known, token_ids, skip_special_tokens=skip_special_tokens)


def text_of(backend: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """As `decode`, but without the ids that the tokenizer does not have: a target's vocabulary may be larger."""
    # Unlike the library's `decode`, this releases the GIL.
    text: str = backend.decode_batch([token_ids], skip_special_tokens=skip_special_tokens)[0]
    return text


def token_strings(backend: Tokenizer | None, token_ids: Sequence[int]) -> list[str]:
    """The tokens as the vocabulary writes them."""
    known = _known(backend, "tokens")
    return [known.id_to_token(token_id) or "" for token_id in token_ids]


def _known(backend: Tokenizer | None, field: str) -> Tokenizer:
    if backend is None:
        raise InvalidRequest(field, "given", "left out: the target has no tokenizer")
    return backend
