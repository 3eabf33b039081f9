"""Stop strings are found wherever the text is cut."""

from __future__ import annotations

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from presift.core.limits import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from presift.core.stop_strings import StopStrings

CUTS = st.lists(st.integers(0, 100), max_size=6)


def shown(text: str, stops: tuple[str, ...], cuts: list[int]) -> str:
    scanner = StopStrings(stops)
    places = sorted({0, *(cut % (len(text) + 1) for cut in cuts), len(text)})
    pieces = [scanner.push(text[begin:end]) for begin, end in itertools.pairwise(places)]
    return "".join(pieces) + scanner.finish()


def expected(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first string to be complete; of several that end there, the longest."""
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)]
    return text


@given(st.text("ab", max_size=16), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple), CUTS)
def test_any_cut_shows_the_text_before_the_first_stop_string(
    text: str, stops: tuple[str, ...], cuts: list[int]
) -> None:
    assert shown(text, stops, cuts) == expected(text, stops)


def test_only_the_beginning_of_a_stop_string_is_held_back() -> None:
    scanner = StopStrings(("xyz",))
    assert [scanner.push(each) for each in ("ax", "y", "b", "xyz", "more")] == ["a", "", "xyb", "", ""]
    assert scanner.found


def test_it_tells_whether_a_stop_string_may_have_begun() -> None:
    scanner, told = StopStrings(("xyz",)), []
    for piece in ("ax", "y", "b", "xyz", "more"):
        scanner.push(piece)
        told.append(scanner.may_have_begun)
    assert told == [True, True, False, True, True]


def cost_s(size: int) -> float:
    """The shortest of three times that a text takes whose every character may begin each stop string of that size."""
    stops = ["a" * (size - 1) + chr(ord("b") + number) for number in range(MAX_STOP_STRINGS)]
    times = []
    for _ in range(3):
        scanner, began_s = StopStrings(stops), time.perf_counter()
        for _ in range(500):
            scanner.push("aaaa")
        times.append(time.perf_counter() - began_s)
    return min(times)


def test_the_cost_of_a_token_does_not_grow_with_the_stop_strings() -> None:
    """A search of the whole held text costs 64 times as much."""
    assert cost_s(MAX_STOP_CHARACTERS) < 8 * cost_s(MAX_STOP_CHARACTERS // 64)
