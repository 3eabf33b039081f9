"""Whether an answer is right, by what is expected of it. Pure.

Text is compared without case and with all white space alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

# Answer, what is expected of it, and the choices, if the prompt offers any -> 0..1.
Scorer = Callable[[str, Sequence[str], Sequence[str]], float]

_ANNOUNCED = re.compile(r"\b(?:answer|choice|option)(?: is|:)\W*(?=\w)")


def contains(answer: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """1 if the answer contains everything that is expected."""
    return float(all(_found(text, _plain(answer)) for text in expected))


def contains_any(answer: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """1 if the answer contains at least one of the expected texts."""
    return float(any(_found(text, _plain(answer)) for text in expected))


def contains_share(answer: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """The share of the expected texts that the answer contains."""
    return sum(_found(text, _plain(answer)) for text in expected) / len(expected)


def exact(answer: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """1 if the answer is one of the expected texts, but for punctuation around it."""
    return float(_bare(answer) in {_bare(text) for text in expected})


def choice(answer: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """1 if the answer names the expected choice before all others.

    If it says "the answer is" or "answer:", what comes before the last of these does not count.
    """
    text = _plain(answer)
    announced = [match.end() for match in _ANNOUNCED.finditer(text)]
    return float(_first_choice(text[announced[-1] if announced else 0 :], choices) in expected)


SCORERS: dict[str, Scorer] = {each.__name__: each for each in (contains, contains_any, contains_share, exact, choice)}


def _first_choice(text: str, choices: Sequence[str]) -> str | None:
    """The choice whose whole words come first; the longest of those that begin at one place."""
    places = [(match.start(), -len(each), each) for each in choices if (match := _whole(each).search(text))]
    return min(places)[2] if places else None


def _whole(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(_plain(text))}(?!\w)")


def _found(text: str, answer: str) -> bool:
    """Whether the answer contains the text; a number within a longer number is another number."""
    plain = _plain(text)
    before = r"(?<!\d)" if plain[:1].isdigit() else ""
    after = r"(?!\d)" if plain[-1:].isdigit() else ""
    return re.search(f"{before}{re.escape(plain)}{after}", answer) is not None


def _bare(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", _plain(text))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
