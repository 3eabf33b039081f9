"""Streamed text equals `decode` of the whole answer: for every kind of tokenizer, any tokens, in linear time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from presift.orchestrator.prompt import token_bytes
from presift.orchestrator.prompt.detokenizer import Detokenizer

# Fewer in `make test-fast`.
EXAMPLES = settings().max_examples

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["a", "▁a", "▁", "▁▁", "日", "é", ".", "▁.", "😀", "b", "�"]
# 30 bytes of every kind: ASCII, space, first bytes of 2, 3 and 4, continuations, never valid.
SOME_BYTES = [0x41, 0x20, 0xC3, 0xA9, 0xE6, 0x97, 0xA5, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0xC0, 0xED, 0xA0, 0xF4, 0x90]


def with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    return tokenizer


def byte_level() -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {token: 256 + number for number, token in enumerate(["Ġa", "ab", "æĹ¥", "ðŁĺ", "ðŁĺĢ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return with_special(tokenizer)


def byte_fallback(*decoding: decoders.Decoder) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(["<unk>", *BYTES, *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), *decoding])
    return with_special(tokenizer)


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((word, -1.0) for word in WORDS)], 0))
    tokenizer.decoder = decoders.Metaspace()
    return with_special(tokenizer)


def word_piece() -> Tokenizer:
    words = ["[UNK]", "play", "##ing", "##s", "it", "'", "s", ".", "do", "n't", "日"]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return with_special(tokenizer)


KINDS = {
    "byte-level": byte_level(),
    "byte-fallback, Llama": byte_fallback(decoders.Fuse(), decoders.Strip(" ", 1, 0)),
    "byte-fallback, Gemma": byte_fallback(decoders.Fuse()),
    "SentencePiece": unigram(),
    "WordPiece": word_piece(),
}


def streamed(tokenizer: Tokenizer, ids: list[int], step: int = 1) -> list[str]:
    stream = Detokenizer(tokenizer)
    return [stream.push(ids[at : at + step]) for at in range(0, len(ids), step)] + [stream.finish()]


def is_valid_where_it_is_bytes(tokenizer: Tokenizer, ids: list[int]) -> bool:
    """Whether every run of byte tokens is UTF-8: the treatment of others is documented in detokenizer.py."""
    shown = [tokenizer.id_to_token(each) for each in ids]
    run, runs = b"", []
    for token in [*(each for each in shown if each not in (None, "<|end|>")), ""]:
        byte = re.fullmatch("<0x(..)>", token)
        run = run + bytes.fromhex(byte[1]) if byte else run
        if not byte:
            runs.append(run)
            run = b""
    return all(each.decode("utf-8", "ignore").encode() == each for each in runs)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_tokens_stream_to_what_decode_makes_of_them_all(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]
    token = st.integers(0, tokenizer.get_vocab_size() + 2)  # two that do not exist
    if "fallback" in kind:  # mostly bytes that can be UTF-8 together
        token = st.one_of(st.sampled_from([1 + byte for byte in SOME_BYTES]), token)
    ids = data.draw(st.lists(token, max_size=24))
    text = "".join(streamed(tokenizer, ids, data.draw(st.integers(1, 4))))

    if "fallback" in kind and not is_valid_where_it_is_bytes(tokenizer, ids):
        # The valid characters next to invalid bytes are kept.
        assert len(text) <= len(tokenizer.decode(ids))
    else:
        assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback, Llama"])
def test_valid_characters_next_to_invalid_bytes_are_shown(kind: str) -> None:
    tokenizer = KINDS[kind]
    broken = "é".encode() + b"\xff" + "日".encode() + b"\xf0\x9f"
    names = BYTES if "fallback" in kind else {byte: character for character, byte in _table().items()}
    ids = [tokenizer.token_to_id(names[byte]) for byte in broken]
    assert "".join(streamed(tokenizer, ids)) == "é\ufffd日\ufffd"


def _table() -> dict[str, int]:
    return token_bytes._BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_text_waits_for_three_tokens_at_most(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = [tokenizer.token_to_id("<0xFF>") or 0] * 40
    pieces = streamed(tokenizer, ids)
    assert all(any(pieces[at : at + 4]) for at in range(len(pieces) - 4)) or not any(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_linear(kind: str) -> None:
    """Ten times the tokens take about ten times the processor time, whatever they are."""
    tokenizer = KINDS[kind]

    def seconds(tokens: int) -> float:
        ids = [each % tokenizer.get_vocab_size() for each in range(tokens)]
        began = time.process_time()
        streamed(tokenizer, ids)
        return time.process_time() - began

    short = min(seconds(1_000) for _ in range(3))
    assert min(seconds(10_000) for _ in range(2)) < 30 * max(short, 0.001)


def test_special_tokens_are_shown_on_request() -> None:
    tokenizer = KINDS["byte-level"]
    ids = [tokenizer.token_to_id(each) for each in ("a", "<|end|>", "b")]
    stream = Detokenizer(tokenizer, keeps_special=True)
    assert stream.push(ids) == "a<|end|>b"
