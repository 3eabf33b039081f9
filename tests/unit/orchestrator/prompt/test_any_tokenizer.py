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


SPECIAL = {kind: tokenizer.token_to_id("<|end|>") for kind, tokenizer in KINDS.items()}


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


def with_valid_characters(tokenizer: Tokenizer, ids: list[int]) -> str:
    """What is documented for bytes that are no UTF-8: of a run of byte tokens only the invalid ones are U+FFFD."""
    text, run = "", b""
    for each in [*ids, None]:
        token = None if each is None else tokenizer.id_to_token(each)
        if each is not None and token in (None, "<|end|>"):
            continue
        if token and (byte := re.fullmatch("<0x(..)>", token)):
            run += bytes.fromhex(byte[1])
            continue
        text, run = text + run.decode("utf-8", "replace") + (token or "").replace("▁", " "), b""
    return text


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
        assert text.lstrip(" ") == with_valid_characters(tokenizer, ids).lstrip(" ")
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
@settings(max_examples=3 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_text_waits_for_three_tokens_at_most(kind: str, data: st.DataObject) -> None:
    """The text up to any token is shown with the third token after it at the latest."""
    tokenizer = KINDS[kind]
    token = st.integers(0, tokenizer.get_vocab_size() - 1).filter(lambda each: each != SPECIAL[kind])
    if "fallback" in kind:
        token = st.one_of(st.sampled_from([1 + byte for byte in SOME_BYTES]), token)
    ids, shown = data.draw(st.lists(token, max_size=24)), 0
    for at, piece in enumerate(streamed(tokenizer, ids)[:-1]):
        shown += len(piece)
        assert shown >= len("".join(streamed(tokenizer, ids[: max(0, at - 2)])))


# Token ids by kind of answer: all tokens in turn, what is never whole, a long run of bytes.
ANSWERS = {
    "of all tokens": lambda tokenizer, tokens: [each % tokenizer.get_vocab_size() for each in range(tokens)],
    "of one token": lambda tokenizer, tokens: [3] * tokens,
    "of invalid bytes": lambda tokenizer, tokens: [tokenizer.token_to_id("<0xFF>") or FF or 0] * tokens,
    "of U+FFFD": lambda tokenizer, tokens: [tokenizer.token_to_id("\ufffd") or 0] * tokens,
}
FF = KINDS["byte-level"].token_to_id(next(each for each, byte in token_bytes._BYTES.items() if byte == 0xFF))


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_linear(kind: str, answer: str) -> None:
    """Ten times the tokens take about ten times the processor time, whatever they are."""
    tokenizer = KINDS[kind]

    def seconds(tokens: int) -> float:
        ids = ANSWERS[answer](tokenizer, tokens)
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
