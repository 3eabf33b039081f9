"""A prompt in two vocabularies: the same text, to the character; and the draft's lookahead in the target's tokens."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from presift.core.errors import InvalidRequest
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge

# Fewer in `make test-fast`.
EXAMPLES = settings().max_examples

TEXT = "<|im_start|>user\nThe quick brown fox, naïve 日本語 😀👍<|im_end|>\n"


def ids_of(backend, text):
    return np.array(backend.encode(text, add_special_tokens=False).ids, dtype=np.uint32)


def read(target, draft, text=TEXT):
    return VocabularyBridge(target, draft).translate(ids_of(target, text))


def copy(backend):
    return Tokenizer.from_str(backend.to_str())


@pytest.mark.parametrize("draft", ["words", "unigram", "bpe", "framed_bpe"])
def test_the_draft_reads_the_same_text(bpe, draft, request):
    draft = request.getfixturevalue(draft)
    reading = read(bpe, draft)
    assert reading.ids.dtype == np.uint32 and reading.ids.size == len(reading.draft_offsets)
    assert len(reading.target_offsets) == ids_of(bpe, TEXT).size
    for offsets in (reading.draft_offsets, reading.target_offsets):
        assert offsets.min() >= 0 and offsets.max() <= len(TEXT)
    alone = draft.encode(TEXT, add_special_tokens=False)
    start = 1 if draft.token_to_id("<bos>") in reading.ids.tolist()[:1] else 0
    assert reading.ids.tolist()[start:] == alone.ids
    assert reading.draft_offsets.tolist()[start:] == [list(each) for each in alone.offsets]


def test_the_drafts_own_beginning_is_kept_and_its_end_is_not(bpe, unigram):
    reading = read(bpe, unigram)
    assert reading.ids[0] == unigram.token_to_id("<bos>")
    assert unigram.token_to_id("<eos>") not in reading.ids


def test_truncation_and_padding_of_the_tokenizer_file_are_ignored(bpe, words):
    cutting = copy(words)
    cutting.enable_truncation(3)
    cutting.enable_padding(length=500)
    assert read(bpe, cutting).ids.tolist() == read(bpe, words).ids.tolist()


def test_ids_of_incomplete_characters_are_refused(bpe, words):
    half = ids_of(bpe, "😀a")[1:]  # begins in the middle of a character
    with pytest.raises(InvalidRequest, match="text"):
        VocabularyBridge(bpe, words).translate(half)


def test_ids_that_their_text_does_not_encode_to_are_refused(bpe, words):
    by_letter = np.array([bpe.token_to_id(letter) for letter in "fox"], dtype=np.uint32)
    assert ids_of(bpe, "fox").size < 3
    with pytest.raises(InvalidRequest) as refusal:
        VocabularyBridge(bpe, words).translate(by_letter)
    assert refusal.value.field == "prompt" and "fox" not in refusal.value.message


@settings(max_examples=2 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_unicode(bpe, words, unigram, text):
    for draft in (words, unigram):
        reading = read(bpe, draft, text)
        assert reading.target_offsets[-1, 1] == len(text)
        assert reading.draft_offsets.size == 0 or reading.draft_offsets.max() <= len(text)


@pytest.mark.parametrize(
    ("window", "words_in_it"),
    [(1, [";"]), (2, ["dog", ";"]), (3, ["dog", ";"]), (500, ["The", "lazy", "dog", ";"])],
)
def test_the_window_holds_the_same_text(byte_bpe, words, window, words_in_it):
    """The window in bytes of the target; a word that is partly inside counts."""
    reading = read(byte_bpe, words, "The lazy dog;")
    count = reading.draft_window(window)
    assert [words.id_to_token(number) for number in reading.ids[-count:].tolist()] == words_in_it


def test_a_window_is_never_empty(byte_bpe, words):
    assert read(byte_bpe, words, "dog;   ").draft_window(2) == 1  # white space has no draft token


@pytest.fixture(scope="module")
def byte_bpe(bpe):
    """One token per byte: no merges."""
    made = json.loads(bpe.to_str())
    made["model"]["merges"] = []
    return Tokenizer.from_str(json.dumps(made))


def translated_lookahead(target, draft, text, generated, count=99):
    bridge = VocabularyBridge(target, draft)
    ids = bridge.translate_lookahead(bridge.translate(ids_of(target, text)), generated, count)
    return target.decode(list(ids), skip_special_tokens=False), ids


@pytest.mark.parametrize("draft", ["words", "unigram", "framed_bpe"])
def test_the_lookahead_continues_the_prompt(byte_bpe, draft, request):
    draft = request.getfixturevalue(draft)
    whole, start = (draft.encode(text, add_special_tokens=False).ids for text in ("The lazy dog", "The lazy"))
    assert whole[: len(start)] == start
    assert translated_lookahead(byte_bpe, draft, "The lazy", whole[len(start) :])[0] == " dog"


def test_the_lookahead_is_cut_to_the_requested_count(byte_bpe, words):
    generated = words.encode("dog", add_special_tokens=False).ids
    assert translated_lookahead(byte_bpe, words, "The", generated, count=2)[0] == " d"
    assert translated_lookahead(byte_bpe, words, "The", generated, count=0)[1] == ()
    assert translated_lookahead(byte_bpe, words, "The", ())[1] == ()


def test_the_lookahead_does_not_merge_with_the_prompt(bpe, byte_bpe):
    """`brow` and `n` stay apart although the target has a token for both together."""
    generated = ids_of(byte_bpe, "n fox").tolist()
    text, ids = translated_lookahead(bpe, byte_bpe, "The quick brow", generated)
    assert text == "n fox" and ids == tuple(ids_of(bpe, "n fox").tolist())
    assert ids_of(bpe, "The quick brown fox").size < ids_of(bpe, "The quick brow").size + len(ids)


def test_an_incomplete_last_character_is_left_out(bpe, byte_bpe):
    generated = ids_of(byte_bpe, "a😀").tolist()[:-1]
    assert translated_lookahead(bpe, byte_bpe, "The", generated)[0] == "a"


def test_special_tokens_of_the_lookahead(bpe, unigram):
    """<eos> is in both vocabularies, <unk> only in the draft's."""
    generated = [unigram.token_to_id(token) for token in ("<unk>", "<eos>")]
    assert translated_lookahead(bpe, unigram, "The", generated)[1] == (bpe.token_to_id("<eos>"),)


def test_ids_that_the_draft_does_not_have(bpe, words):
    assert translated_lookahead(bpe, words, "The", [2**31])[1] == ()
