"""A tokenizer's fingerprint: what it must and must not depend on."""

import copy
import json

import pytest

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint

BPE = {
    "version": "1.0",
    "added_tokens": [
        {"id": 4, "content": "<|end|>", "special": True, "normalized": False},
        {"id": 3, "content": "<|im|>", "special": True},
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": None,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}
UNIGRAM = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": []}


def _digest(document, **formatting):
    return fingerprint(json.dumps(document, **formatting).encode())


def _changed(path, value, document=BPE):
    result = copy.deepcopy(document)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return result


def test_it_is_a_sha_256():
    assert len(bytes.fromhex(_digest(BPE))) == 32


@pytest.mark.parametrize(
    "same",
    [
        _changed(["normalizer"], None),
        _changed(["pre_tokenizer"], {"type": "ByteLevel"}),
        _changed(["version"], "2.0"),
        _changed(["added_tokens"], BPE["added_tokens"][::-1]),
        _changed(["added_tokens", 0, "special"], False),
        _changed(["model", "merges"], [["a", "b"]]),
        _changed(["model", "vocab"], {"ab": 2, "b": 1, "a": 0}),
        _changed(["model", "vocab"], {**BPE["model"]["vocab"], "<|im|>": 3, "<|end|>": 4}),
    ],
)
def test_formatting_and_how_text_is_cut_do_not_matter(same):
    assert _digest(same) == _digest(BPE)
    assert _digest(same, indent=2, ensure_ascii=False, sort_keys=True) == _digest(BPE)


@pytest.mark.parametrize(
    "other",
    [
        _changed(["model", "vocab", "a"], 7),
        _changed(["model", "vocab", "c"], 9),
        _changed(["model", "vocab"], {"a": 1, "b": 0, "ab": 2}),
        _changed(["model", "merges"], []),
        _changed(["model", "merges"], ["b a"]),
        _changed(["added_tokens"], BPE["added_tokens"][:1]),
        _changed(["added_tokens", 0, "content"], "<|stop|>"),
        _changed(["added_tokens", 0, "id"], 5),
    ],
)
def test_any_difference_of_vocabulary_merges_or_added_tokens_does(other):
    assert _digest(other) != _digest(BPE)


def test_the_order_of_merges_matters():
    one, other = (_changed(["model", "merges"], merges) for merges in (["a b", "b a"], ["b a", "a b"]))
    assert _digest(one) != _digest(other)


def test_unigram_vocabularies_count_ids_by_order_and_carry_scores():
    swapped = _changed(["model", "vocab"], UNIGRAM["model"]["vocab"][::-1], UNIGRAM)
    rescored = _changed(["model", "vocab", 1, 1], -2.0, UNIGRAM)
    assert len({_digest(document) for document in (UNIGRAM, swapped, rescored)}) == 3


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b"{}", b'{"model": {}}', b'{"model": 3}', b"\xff\xfe"])
def test_what_is_no_tokenizer_is_refused(junk):
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json"):
        fingerprint(junk)
