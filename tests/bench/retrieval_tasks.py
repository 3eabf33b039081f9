"""Retrieval questions over made-up documents of a wanted length: generator, grader and the fixed set.

A task is a pure function of (kind, tokens, seed). Each has one short right answer, somewhere in the document, among
facts of the same form about something else:

- needle: one fact in prose;
- key_value: one of many lines of random keys and values;
- multi_key: two facts in prose to combine (who keeps what in which room, which code opens that room);
- code: what a function of a long module returns, as a literal (even seeds) or by a constant defined elsewhere (odd).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from presift.orchestrator.request import Chat, Message, TextPart

KINDS = ("needle", "key_value", "multi_key", "code")
SYSTEM = "You answer questions about a document. Reply with the answer alone, without any other words."

_WORDS = """
amber brisk copper dusty eager faded gentle hollow ivory jagged keen lunar mossy narrow olive pale
anchor barrel compass drum easel flute globe hammer inkwell jug kettle lantern mirror needle oar prism
archive bakery chapel dockyard embassy foundry granary harbour island junction library mill
Adela Bruno Cosima Dmitri Elspeth Farid Greta Hugo Ines Jonas Katya Leopold Mirela Nils Olga Piet
cleaned drawn hidden inspected lent measured moved painted praised repaired sold weighed
"""
_ADJECTIVES, _NOUNS, _PLACES, _PEOPLE, _DEEDS = (line.split() for line in _WORDS.strip().splitlines())

Count = Callable[[str], int]

# Wanted tokens and seeds, one task of each kind for each, in the order of the benchmark: whatever stops it, what has
# run is mixed. The seeds are 0, 1, 2 ... at each length, none left out: nothing was chosen by any model's answers.
SERIES = (
    *((2100, seed) for seed in (0, 1)),
    (3200, 0),
    (2100, 2),
    (5300, 0),
    (2100, 3),
    (2100, 4),
    (2100, 5),
)


@dataclass(frozen=True, slots=True)
class Task:
    """One question. `tokens` is the wanted length of the document."""

    kind: str
    tokens: int
    seed: int
    document: str
    question: str
    answer: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.tokens}-{self.seed}"

    @property
    def chat(self) -> Chat:
        """As an application would send it: the question is a part of its own, which the orchestrator protects."""
        parts = (TextPart(self.document), TextPart(f"\n\n{self.question} Reply with the answer alone."))
        return Chat((Message("system", (TextPart(SYSTEM),)), Message("user", parts)))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a document must hold, in any order, amid what fills it."""

    pieces: list[str]
    filler: Iterator[str]
    question: str
    answer: str
    joint: str


def make(kind: str, tokens: int, seed: int, count: Count) -> Task:
    """The task whose document has `tokens` tokens or a few more, as `count` counts them."""
    rng = random.Random(f"{kind} {tokens} {seed}")
    facts = {"needle": _needle, "key_value": _key_value, "multi_key": _multi_key, "code": _code}[kind](rng, seed)
    pieces, length = list(facts.pieces), sum(count(piece + facts.joint) for piece in facts.pieces)
    while length < tokens:
        pieces.append(next(facts.filler))
        length += count(pieces[-1] + facts.joint)
    rng.shuffle(pieces)
    return Task(kind, tokens, seed, facts.joint.join(pieces), facts.question, facts.answer)


def fixed_set(count: Count) -> list[Task]:
    """The tasks of the benchmark."""
    return [make(kind, tokens, seed, count) for tokens, seed in SERIES for kind in KINDS]


def is_right(task: Task, text: str) -> bool:
    """Whether the answer stands in `text` as a word of its own; case, punctuation and digit grouping do not count."""
    return f" {_normalised(task.answer)} " in f" {_normalised(text)} "


def _normalised(text: str) -> str:
    joined = re.sub(r"(?<=\d)[,_](?=\d)", "", text.lower())
    return " ".join(re.findall(r"[a-z0-9]+", joined))


def _needle(rng: random.Random, seed: int) -> _Facts:
    things, codes = _pairs(rng, _ADJECTIVES, _NOUNS, 6), _numbers(rng, 6, 5)
    pieces = [f"The serial number of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    return _Facts(pieces, _prose(rng), f"What is the serial number of the {things[0]}?", codes[0], " ")


def _key_value(rng: random.Random, seed: int) -> _Facts:
    def line() -> tuple[str, str]:
        digits = f"{rng.getrandbits(64):016x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:]}", str(rng.randrange(100_000, 1_000_000))

    key, value = line()
    others = (f"{other}: {found}" for other, found in iter(line, None))
    return _Facts([f"{key}: {value}"], others, f"Which value belongs to the key {key}?", value, "\n")


def _multi_key(rng: random.Random, seed: int) -> _Facts:
    people, things = rng.sample(_PEOPLE, 5), _pairs(rng, _ADJECTIVES, _NOUNS, 5)
    rooms, codes = _numbers(rng, 5, 3), _numbers(rng, 5, 5)
    stored = [f"{who} keeps the {what} in room {room}." for who, what, room in zip(people, things, rooms, strict=True)]
    doors = [f"The door of room {room} opens with the code {code}." for room, code in zip(rooms, codes, strict=True)]
    question = f"Which code opens the door of the room in which {people[0]} keeps the {things[0]}?"
    return _Facts(stored + doors, _prose(rng), question, codes[0], " ")


def _code(rng: random.Random, seed: int) -> _Facts:
    names, values = [name.replace(" ", "_") for name in _pairs(rng, _ADJECTIVES, _NOUNS, 5)], _numbers(rng, 5, 4)
    if seed % 2 == 0:
        pieces = [_function(f"{name}_limit", value) for name, value in zip(names, values, strict=True)]
    else:
        places = [f"{place.upper()}_LIMIT" for place in rng.sample(_PLACES, 5)]
        pieces = [f"{place} = {value}" for place, value in zip(places, values, strict=True)]
        pieces += [_function(f"{name}_limit", place) for name, place in zip(names, places, strict=True)]
    question = f"Which number does the function {names[0]}_limit of this module return?"
    return _Facts(pieces, _functions(rng, set(names)), question, values[0], "\n\n\n")


def _prose(rng: random.Random) -> Iterator[str]:
    while True:
        adjective, thing, deed, who = map(rng.choice, (_ADJECTIVES, _NOUNS, _DEEDS, _PEOPLE))
        place, other = rng.sample(_PLACES, 2)
        yield f"A {adjective} {thing} was {deed} near the {place}, and {who} wrote to the {other} about it."


def _functions(rng: random.Random, taken: set[str]) -> Iterator[str]:
    while True:
        name, deed = f"{rng.choice(_ADJECTIVES)}_{rng.choice(_NOUNS)}", rng.choice(_DEEDS)
        if name not in taken:
            yield _function(f"{name}_{deed}", f"amount * {rng.randrange(2, 90)} + {rng.randrange(100)}", "amount")


def _function(name: str, value: str, argument: str = "") -> str:
    return f'def {name}({argument}):\n    """The {name.replace("_", " ")}."""\n    return {value}'


def _pairs(rng: random.Random, first: list[str], second: list[str], count: int) -> list[str]:
    """Distinct pairs; the first has its first word with the second pair, its second with the third: look-alikes."""
    (a, b, *_), (x, y, *_) = one, two = rng.sample(first, len(first)), rng.sample(second, len(second))
    rest = [f"{left} {right}" for left, right in zip(one[2:], two[2:], strict=True)]
    return [f"{a} {x}", f"{a} {y}", f"{b} {x}", *rest][:count]


def _numbers(rng: random.Random, count: int, digits: int) -> list[str]:
    return [str(number) for number in rng.sample(range(10 ** (digits - 1), 10**digits), count)]
