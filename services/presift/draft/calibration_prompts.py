"""Synthetic prompts for the calibration: a document that hides facts among similar ones, and questions about them.

The wording is used nowhere else: benchmarks that measure a profile must not resemble what it was made from.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_WORDS = """
Marguerite Anselm Toivo Priya Oskar Leilani Bashir Yolanda Cedric Noor Ingrid Matteo
Halloran Vance Okafor Lindqvist Barros Teller Whitcomb Sato Duarte Kessler Moreau Finch
Aldermoor Brightwater Cawston Dunmere Elmsford Fenwick Garrowby Hexley Ivinghoe Kelmscott
barley timber copper linen salt glassware candles slate saffron wool tar honey
depot clinic ferry brewery observatory tannery signal-box nursery boathouse press-room
quiet damp crowded narrow sunlit draughty spacious modest tidy weathered
repainted surveyed catalogued rented extended insured emptied photographed heated rewired
"""
_FIRST, _LAST, _TOWNS, _GOODS, _UNITS, _TONE, _VERBS = (line.split() for line in _WORDS.strip().splitlines())


@dataclass(frozen=True, slots=True)
class CalibrationQuestion:
    """`facts` are the lines of the document that hold the answer; `answers` the words in them that must be kept."""

    kind: str
    text: str
    facts: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CalibrationDocument:
    """One text, and the questions that are asked about it."""

    text: str
    questions: tuple[CalibrationQuestion, ...]


@dataclass(frozen=True, slots=True)
class _Planted:
    """`decoy` makes another line of the same form, which answers a different question."""

    facts: list[str]
    decoy: Callable[[], str]
    question: str
    answers: list[str]


def make(seed: int, characters: int, questions_per_kind: int, decoys: int) -> CalibrationDocument:
    """The document of this seed, of at least so many characters. Each question's facts have so many decoys."""
    rng = random.Random(seed)
    lines, questions = list[str](), list[CalibrationQuestion]()
    for kind, plant in _KINDS.items():
        for _ in range(questions_per_kind):
            planted = plant(rng)
            lines += [*planted.facts, *(planted.decoy() for _ in range(decoys))]
            questions.append(CalibrationQuestion(kind, planted.question, tuple(planted.facts), tuple(planted.answers)))
    count = sum(map(len, lines))
    while count < characters:
        lines.append(_sentence(rng))
        count += len(lines[-1])
    rng.shuffle(lines)
    return CalibrationDocument("\n".join(lines), tuple(questions))


def _sentence(rng: random.Random) -> str:
    (town, other), year = rng.sample(_TOWNS, 2), rng.randrange(1800, 1990)
    tone, unit, verb, good = map(rng.choice, (_TONE, _UNITS, _VERBS, _GOODS))
    return f"In {town} the {tone} {unit} was {verb} in {year} after a cart with {good} arrived from {other}."


def _person(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"


def _distinct(make_one: Callable[[], str]) -> Callable[[], str]:
    """Calls `make_one` until it returns what it has not returned before."""
    seen = set[str]()

    def new() -> str:
        while (one := make_one()) in seen:
            pass
        seen.add(one)
        return one

    return new


def _direct(rng: random.Random) -> _Planted:
    """The question has the words of the fact."""
    locker = _distinct(lambda: f"{rng.choice(_TONE)} {rng.choice(_UNITS)} in {rng.choice(_TOWNS)}")

    def line(name: str, code: int) -> str:
        return f"The locker of the {name} opens with the combination {code}."

    wanted, code = locker(), rng.randrange(1000, 5000)
    return _Planted(
        [line(wanted, code)],
        lambda: line(locker(), rng.randrange(5000, 9999)),
        f"With which combination does the locker of the {wanted} open?",
        [str(code)],
    )


# A fact about a person and a town, and a question that shares no content word with it.
_REWORDINGS = (
    ("{who} was born and grew up in {town}.", "Which place is the childhood home of {who}?"),
    ("{who} earns a living at the school of {town}.", "Where does {who} work?"),
    ("{who} is going to marry in {town} in June.", "At which location is the wedding of {who}?"),
    ("The doctor treated {who} for a broken leg in {town}.", "In which village was {who} a patient?"),
)


def _reworded(rng: random.Random) -> _Planted:
    """The question shares no content word with the fact but the name."""
    person, (fact, question) = _distinct(lambda: _person(rng)), rng.choice(_REWORDINGS)
    wanted, town, *others = person(), *rng.sample(_TOWNS, len(_TOWNS))
    return _Planted(
        [fact.format(who=wanted, town=town)],
        lambda: fact.format(who=person(), town=rng.choice(others)),
        question.format(who=wanted),
        [town],
    )


def _record(rng: random.Random) -> _Planted:
    """One of many records with long keys."""
    key = _distinct(lambda: f"{rng.choice('BCDFGHJK')}{rng.randrange(10**6):06d}-{rng.randrange(100):02d}")

    def line(name: str, weight: int) -> str:
        return f"{name} | {rng.choice(_GOODS)} | {weight} kg"

    wanted, weight = key(), rng.randrange(100, 500)
    return _Planted(
        [line(wanted, weight)],
        lambda: line(key(), rng.randrange(500, 999)),
        f"How heavy is the consignment {wanted}?",
        [f"{weight} kg"],
    )


def _source_code(rng: random.Random) -> _Planted:
    """A constant that a function returns."""
    name = _distinct(lambda: f"{rng.choice(_VERBS)}_{rng.choice(_GOODS)}_{rng.choice(_TONE)}_timeout")

    def line(function: str, value: int) -> str:
        return f"def {function}(self):\n    return {value}"

    wanted, value = name(), rng.randrange(100, 5000)
    return _Planted(
        [line(wanted, value)],
        lambda: line(name(), rng.randrange(5000, 9999)),
        f"What does `{wanted}` return?",
        [str(value)],
    )


def _several(rng: random.Random) -> _Planted:
    """Three facts make the answer."""
    town, *others = rng.sample(_TOWNS, len(_TOWNS))
    goods, rest = rng.sample(_GOODS, 3), list(_GOODS)
    return _Planted(
        [f"{_person(rng)} delivers {good} to {town} every week." for good in goods],
        lambda: f"{_person(rng)} delivers {rng.choice(rest)} to {rng.choice(others)} every month.",
        f"Which goods are delivered to {town} every week?",
        goods,
    )


def _chained(rng: random.Random) -> _Planted:
    """The second fact is found through the first."""
    person = _distinct(lambda: _person(rng))
    owner, number = person(), rng.randrange(10_000, 50_000)
    (unit, *units), (town, *towns) = rng.sample(_UNITS, len(_UNITS)), rng.sample(_TOWNS, len(_TOWNS))

    def decoy() -> str:
        if rng.random() < 0.5:
            return f"The telephone number of {person()} is {rng.randrange(50_000, 99_999)}."
        return f"The {rng.choice(units)} near {rng.choice(towns)} belongs to {person()}."

    return _Planted(
        [f"The {unit} near {town} belongs to {owner}.", f"The telephone number of {owner} is {number}."],
        decoy,
        f"What is the telephone number of the owner of the {unit} near {town}?",
        [owner, str(number)],
    )


_KINDS: dict[str, Callable[[random.Random], _Planted]] = {
    "direct": _direct,
    "reworded": _reworded,
    "record": _record,
    "source_code": _source_code,
    "several": _several,
    "chained": _chained,
}
KINDS = tuple(_KINDS)
