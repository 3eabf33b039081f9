import copy
import json

import pytest

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint

BPE = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    "added_tokens": [{"id": 3, "content": "<end>", "special": True}],
    "pre_tokenizer": {"type": "ByteLevel"},
}
UNIGRAM = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}


def written(document, **options):
    return json.dumps(document, **options).encode()


def changed(document, change):
    other = copy.deepcopy(document)
    change(other)
    return written(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["model"]["vocab"].update(c=4),
        lambda it: it["model"]["vocab"].update(a=1, b=0),
        lambda it: it["model"]["merges"].append(["b", "a"]),
        lambda it: it["model"]["merges"].clear(),
        lambda it: it["added_tokens"][0].update(id=4),
        lambda it: it["added_tokens"][0].update(content="<stop>"),
        lambda it: it["added_tokens"].clear(),
    ],
)
def test_what_an_id_means_changes_the_fingerprint(change):
    assert fingerprint(changed(BPE, change)) != fingerprint(written(BPE))


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["model"].update(merges=["a b"]),
        lambda it: it["added_tokens"][0].update(special=False),
        lambda it: it["model"]["vocab"].update({"<end>": 3}),
        lambda it: it.pop("pre_tokenizer"),
        lambda it: it.update(decoder={"type": "ByteLevel"}),
    ],
)
def test_how_it_is_written_or_shown_does_not(change):
    assert fingerprint(changed(BPE, change)) == fingerprint(written(BPE))
    assert fingerprint(written(BPE, indent=2, sort_keys=True)) == fingerprint(written(BPE))


@pytest.mark.parametrize("vocabulary", [[["b", -1.0], ["a", -2.0]], [["a", -1.0], ["b", -3.0]], [["a", -1.0]]])
def test_unigram_order_and_scores_count(vocabulary):
    other = {"model": {"type": "Unigram", "vocab": vocabulary}}
    assert fingerprint(written(other)) != fingerprint(written(UNIGRAM))


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"model": null}', b'{"model": {}}', b"\xff"])
def test_what_is_no_tokenizer_is_refused(document):
    with pytest.raises(InvalidRequest, match="no vocabulary"):
        fingerprint(document)


@pytest.mark.parametrize("document", [b'{"model": {"vocab": [1]}}', b"[" * 99_999], ids=["of another form", "too deep"])
def test_a_damaged_tokenizer_is_refused(document):
    with pytest.raises(InvalidRequest, match="no vocabulary"):
        fingerprint(document)
