"""The detokenizer emits whole characters only, and nothing from a stop string on."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from presift.orchestrator.prompt.detokenizer import Detokenizer

# Fewer in `make test-fast`.
EXAMPLES = settings().max_examples


def pushed(bpe, text, stop=(), step=1):
    """The texts of each push, and of finish."""
    ids = bpe.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(bpe, stop)
    return [detokenizer.push(ids[at : at + step]) for at in range(0, len(ids), step)] + [detokenizer.finish()]


@pytest.mark.parametrize("text", ["The quick brown fox", "naïve café", "日本語 日本", "a😀b👍c", "𝄞 music", ""])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_all_text_is_emitted_in_whole_characters(bpe, text, step):
    parts = pushed(bpe, text, step=step)
    assert "".join(parts) == text and not any("\ufffd" in part for part in parts)


def test_a_character_split_over_tokens_is_emitted_with_the_last(bpe):
    ids = bpe.encode("𝄞", add_special_tokens=False).ids
    assert len(ids) == 4
    detokenizer = Detokenizer(bpe)
    assert [detokenizer.push([each]) for each in ids] == ["", "", "", "𝄞"]


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["none"], "one two three"),
        ("the lazy dog", ["lazy dog"], "the "),
        ("abcabd", ["abd"], "abc"),
        ("aaab", ["aab"], "a"),
        ("stop", ["stop"], ""),
        ("almost sto", ["stop"], "almost sto"),
        ("a😀b", ["😀"], "a"),
        ("x𝄞y𝄞z", ["y𝄞"], "x𝄞"),
        ("one\n\ntwo", ["\n\n"], "one"),
    ],
)
def test_stop_strings(bpe, text, stop, shown):
    for step in (1, 2, 50):
        assert "".join(pushed(bpe, text, stop, step)) == shown


def test_a_possible_stop_string_is_held_back_and_released(bpe):
    detokenizer = Detokenizer(bpe, ["xyz"])
    assert detokenizer.push(bpe.encode("a").ids) == "a"
    assert detokenizer.push(bpe.encode("x").ids) == ""
    assert detokenizer.push(bpe.encode("y").ids) == ""
    assert detokenizer.push(bpe.encode("a").ids) == "xya"
    assert detokenizer.push(bpe.encode("x").ids) == ""
    assert detokenizer.finish() == "x"


def test_it_tells_whether_a_stop_string_may_have_begun(bpe):
    told = []
    detokenizer = Detokenizer(bpe, ["x𝄞"])
    for token_id in bpe.encode("axbx𝄞c", add_special_tokens=False).ids:
        detokenizer.push([token_id])
        told.append(detokenizer.may_be_stopping)
    # a, x, b, x, the four tokens of the clef, c
    assert told == [False, True, False, True, True, True, True, True, True]


@pytest.mark.parametrize(("stop", "may"), [(["x"], True), ([], False)])
def test_a_part_of_a_character_may_begin_a_stop_string(bpe, stop, may):
    detokenizer = Detokenizer(bpe, stop)
    detokenizer.push(bpe.encode("𝄞", add_special_tokens=False).ids[:2])
    assert detokenizer.may_be_stopping is may


@pytest.mark.parametrize(("stop", "may"), [(["x"], True), ([], False)])
def test_without_a_tokenizer_any_text_may_begin_a_stop_string(stop, may):
    assert Detokenizer(None, stop).may_be_stopping is may


def test_nothing_is_emitted_after_a_stop_string(bpe):
    detokenizer = Detokenizer(bpe, ["x"])
    assert detokenizer.push(bpe.encode("axb").ids) == "a"
    assert detokenizer.push(bpe.encode("c").ids) == "" and detokenizer.finish() == ""


def test_special_tokens_are_not_shown(bpe):
    assert "".join(pushed(bpe, "a<|im_end|>b")) == "ab"


def test_without_a_tokenizer_there_is_no_text():
    detokenizer = Detokenizer(None, ["x"])
    assert detokenizer.push([1, 2]) == "" and detokenizer.finish() == ""


@settings(max_examples=3 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.text(st.sampled_from("abé😀 "), max_size=20),
    stop=st.lists(st.text(st.sampled_from("abé😀 "), min_size=1, max_size=4), max_size=3),
    step=st.integers(1, 4),
)
def test_the_text_before_the_first_stop_string_is_emitted(bpe, text, stop, step):
    """The first complete stop string ends the text; if several end with the same token, the one that begins first."""
    shown = "".join(pushed(bpe, text, stop, step))
    assert text.startswith(shown)
    assert not any(each in shown for each in stop)
    if not any(each in text for each in stop):
        assert shown == text
    else:
        assert any(text[len(shown) :].startswith(each) for each in stop)
