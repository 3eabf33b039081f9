"""Synthetic prompts for the calibration: a document of plain sentences that hides facts, and a question about them.

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
class CalibrationPrompt:
    """`facts` are the sentences of `document` that hold the answer; `answers` the words in them that must be kept."""

    kind: str
    document: str
    question: str
    facts: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Planted:
    facts: list[str]
    decoys: list[str]
    question: str
    answers: list[str]


def make(kind: str, words: int, seed: int) -> CalibrationPrompt:
    """The prompt of this kind and seed, of about so many words."""
    rng = random.Random(f"{kind} {seed}")
    planted = _KINDS[kind](rng)
    pieces = [*planted.facts, *planted.decoys]
    filler = max(0, words - sum(len(piece.split()) for piece in pieces)) // 16
    pieces += [_sentence(rng) for _ in range(filler)]
    rng.shuffle(pieces)
    return CalibrationPrompt(kind, "\n".join(pieces), planted.question, tuple(planted.facts), tuple(planted.answers))


def _sentence(rng: random.Random) -> str:
    (town, other), year = rng.sample(_TOWNS, 2), rng.randrange(1800, 1990)
    tone, unit, verb, good = map(rng.choice, (_TONE, _UNITS, _VERBS, _GOODS))
    return f"In {town} the {tone} {unit} was {verb} in {year} after a cart with {good} arrived from {other}."


def _person(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"


def _direct(rng: random.Random) -> _Planted:
    """The question has the words of the fact."""
    units = rng.sample(_UNITS, 4)
    codes = rng.sample(range(1000, 9999), 4)
    lines = [
        f"The locker of the {unit} opens with the combination {code}." for unit, code in zip(units, codes, strict=True)
    ]
    return _Planted(
        lines[:1], lines[1:], f"With which combination does the locker of the {units[0]} open?", [str(codes[0])]
    )


def _reworded(rng: random.Random) -> _Planted:
    """The question shares no content word with the fact but the name."""
    names = rng.sample([f"{first} {last}" for first in _FIRST for last in _LAST], 4)
    towns = rng.sample(_TOWNS, 4)
    lines = [f"{name} was born and grew up in {town}." for name, town in zip(names, towns, strict=True)]
    return _Planted(lines[:1], lines[1:], f"Which place is the childhood home of {names[0]}?", [towns[0]])


def _record(rng: random.Random) -> _Planted:
    """One of many records with long keys."""
    keys = [f"{rng.choice('BCDFGHJK')}{rng.randrange(10**6):06d}-{rng.randrange(100):02d}" for _ in range(16)]
    goods, weights = rng.choices(_GOODS, k=16), rng.sample(range(100, 999), 16)
    lines = [f"{key} | {good} | {weight} kg" for key, good, weight in zip(keys, goods, weights, strict=True)]
    return _Planted(lines[:1], lines[1:], f"How heavy is the consignment {keys[0]}?", [f"{weights[0]} kg"])


def _source_code(rng: random.Random) -> _Planted:
    """A constant that a function returns."""
    names = rng.sample([f"{verb}_{unit.replace('-', '_')}" for verb in _VERBS for unit in _UNITS], 6)
    values = rng.sample(range(100, 9999), 6)
    lines = [f"def {name}_timeout(self):\n    return {value}" for name, value in zip(names, values, strict=True)]
    return _Planted(lines[:1], lines[1:], f"What does `{names[0]}_timeout` return?", [str(values[0])])


def _several(rng: random.Random) -> _Planted:
    """Three facts make the answer."""
    town, others = rng.choice(_TOWNS), rng.sample(_GOODS, 6)
    people = [_person(rng) for _ in range(6)]
    lines = [f"{who} delivers {good} to {town} every week." for who, good in zip(people[:3], others[:3], strict=True)]
    elsewhere = [f"{who} keeps {good} at home." for who, good in zip(people[3:], others[3:], strict=True)]
    return _Planted(lines, elsewhere, f"Which goods are delivered to {town} every week?", others[:3])


def _chained(rng: random.Random) -> _Planted:
    """The second fact is found through the first."""
    unit, town, who = rng.choice(_UNITS), rng.choice(_TOWNS), _person(rng)
    code = str(rng.randrange(10_000, 99_999))
    facts = [f"The {unit} near {town} belongs to {who}.", f"The telephone number of {who} is {code}."]
    decoys = [f"The telephone number of {_person(rng)} is {rng.randrange(10_000, 99_999)}." for _ in range(4)]
    return _Planted(facts, decoys, f"What is the telephone number of the owner of the {unit} near {town}?", [who, code])


_KINDS: dict[str, Callable[[random.Random], _Planted]] = {
    "direct": _direct,
    "reworded": _reworded,
    "record": _record,
    "source_code": _source_code,
    "several": _several,
    "chained": _chained,
}
KINDS = tuple(_KINDS)
