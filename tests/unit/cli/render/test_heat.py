"""Pieces of text, by importance and by how much is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.cli.render.heat import HEAT_LEVELS, HOLD_LEVELS, pieces, printable
from presift_client import ExplainedSpan, Explanation


def holds(explanation):
    return [piece.hold for piece in pieces(explanation)]


def test_adjacent_tokens_that_look_the_same_are_one_piece(explained):
    found = pieces(explained(["a", "b", "c", "d"], [True, True, False, True], protected=[3]))
    assert [(piece.text, piece.start, piece.end, piece.hold > 0, piece.protected) for piece in found] == [
        ("ab", 0, 2, True, False),
        ("c", 2, 3, False, False),
        ("d", 3, 4, True, True),
    ]
    assert [piece.importance for piece in found] == pytest.approx([0.5, 0.25, 0.25])


def test_heat_rises_with_importance(explained):
    importance = [0.0, 0.01, 0.04, 0.2, 0.75]
    heats = [piece.heat for piece in pieces(explained(list("abcde"), importance=importance))]
    assert heats == sorted(heats) and (heats[0], heats[-1]) == (0, HEAT_LEVELS)


def test_one_very_important_token_does_not_hide_the_others(explained):
    importance = [0.5, *[0.1 / 500] * 500, *[0.4 / 499] * 499]
    found = pieces(explained(["x"] * 1000, importance=importance))
    assert found[0].heat == found[-1].heat == HEAT_LEVELS


def test_without_importance_nothing_is_hot(explained):
    assert {piece.heat for piece in pieces(explained(list("ab"), importance=[0.0, 0.0]))} == {0}
    # Fewer than one token in a hundred has any.
    assert pieces(explained(["x"] * 500, importance=[1.0, *[0.0] * 499]))[0].heat == HEAT_LEVELS


def test_only_tokens_kept_by_all_heads_have_the_highest_level():
    def span(share):
        return ExplainedSpan(0, 1, (0, 1), share > 0, False, 0.0, share)

    def hold(share):
        return holds(Explanation(None, (span(share),), "x", None, None))

    assert hold(0.0) == [0] and hold(1.0) == [HOLD_LEVELS]
    assert hold(1 / 640) == [1] and hold(639 / 640) == [HOLD_LEVELS - 1]


def test_tokens_that_share_a_character():
    places = [(0, 1), (1, 2), (1, 2), (2, 3)]
    spans = tuple(ExplainedSpan(i, i + 1, places[i], i % 2 == 0, False, 0.25, None) for i in range(4))
    assert [piece.text for piece in pieces(Explanation(None, spans, "aéb", None, None))] == ["a", "é", "", "b"]


def test_text_without_a_token_is_shown():
    places = [(1, 2), None, (3, 4)]
    spans = tuple(ExplainedSpan(i, i + 1, places[i], i != 1, False, 0.0, None) for i in range(3))
    assert "".join(piece.text for piece in pieces(Explanation(None, spans, " a b ", None, None))) == " a b "


def test_token_ids_are_shown_by_number(explained):
    found = pieces(explained(["x"] * 5, [True, True, False, False, True], has_text=False))
    assert [piece.text for piece in found] == ["[0..2) ", "[2..4) ", "[4..5) "]


@given(st.lists(st.tuples(st.text(min_size=1, max_size=4), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_every_character_is_shown_once(tokens):
    text, at, spans = "".join(token for token, _, _ in tokens), 0, []
    for number, (token, kept, protected) in enumerate(tokens):
        spans.append(ExplainedSpan(number, number + 1, (at, at + len(token)), kept, protected, 0.0, None))
        at += len(token)
    found = pieces(Explanation(None, tuple(spans), text, None, None))
    assert "".join(piece.text for piece in found) == printable(text)
    assert [piece.start for piece in found] == [0, *(piece.end for piece in found[:-1])]


def test_control_characters_become_visible():
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b[31m\x07\r\x00\x7f") == "␛[31m␇␍␀␡"
    assert printable("\x9b31m \u202eabc\u2069") == "\ufffd31m \ufffdabc\ufffd"
    assert printable("👩‍💻 日本語 é") == "👩‍💻 日本語 é"
