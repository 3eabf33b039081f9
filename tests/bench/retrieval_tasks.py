"""Retrieval questions over made-up documents of a wanted length: generator, grader and the fixed set.

A task is a pure function of (kind, tokens, seed). Each has one short right answer, somewhere in the document, among
facts of the same form about something else:

- needle: one fact in prose;
- key_value: one of 40 random keys, each with a value of its own, on lines amid prose;
- multi_key: two facts in prose, both of which the answer must give;
- key_table: one of many lines of random keys and values, and nothing else;
- code: what a function (even seeds) or a method of a class (odd) of a long module returns.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from presift.orchestrator.request import Chat, Message, TextPart

KINDS = ("needle", "key_value", "multi_key", "code", "key_table")
_FOUR = KINDS[:4]
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

# Wanted tokens, seed and kinds, in the order of the benchmark: whatever stops it, what has run is mixed. How they were
# chosen: seeds 0 to 5 were generated, the draft (Qwen2.5-Coder 0.5B) read all of them and was wrong on fewer than a
# third; so seeds 6 to 10 of `multi_key` were read too, the three that the draft had wrong (6, 7, 8) were taken in, and
# of seeds 3 and 4 three left out that it had right. The target's answers chose no task; but kinds on which it failed
# in trials (two facts of which one leads to the other) were given up before.
SERIES = (
    (2100, 0, _FOUR),
    (2100, 6, ("multi_key",)),
    (2100, 1, _FOUR),
    (2100, 7, ("multi_key",)),
    (3200, 0, _FOUR),
    (2100, 3, ("multi_key", "key_table")),
    (5300, 0, ("key_value", "multi_key")),
    (2100, 2, _FOUR),
    (2100, 8, ("multi_key",)),
    (2100, 4, ("multi_key", "code", "key_table")),
    (2100, 5, ("key_value", "multi_key", "code", "key_table")),
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
    facts = _MAKERS[kind](rng, seed)
    pieces, length = list(facts.pieces), sum(count(piece + facts.joint) for piece in facts.pieces)
    while length < tokens:
        pieces.append(next(facts.filler))
        length += count(pieces[-1] + facts.joint)
    rng.shuffle(pieces)
    return Task(kind, tokens, seed, facts.joint.join(pieces), facts.question, facts.answer)


def fixed_set(count: Count) -> list[Task]:
    """The tasks of the benchmark."""
    return [make(kind, tokens, seed, count) for tokens, seed, kinds in SERIES for kind in kinds]


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
    keys = [str(uuid.UUID(int=rng.getrandbits(128)))[:23] for _ in range(40)]
    values = _numbers(rng, len(keys), 5)
    lines = [f"The value of {key} is {value}." for key, value in zip(keys, values, strict=True)]
    return _Facts(lines, _prose(rng), f"What is the value of {keys[0]}?", values[0], "\n")


def _key_table(rng: random.Random, seed: int) -> _Facts:
    def line() -> tuple[str, str]:
        return str(uuid.UUID(int=rng.getrandbits(128)))[:23], str(rng.randrange(100_000, 1_000_000))

    key, value = line()
    others = (f"{other}: {found}" for other, found in iter(line, None))
    return _Facts([f"{key}: {value}"], others, f"Which value belongs to the key {key}?", value, "\n")


def _multi_key(rng: random.Random, seed: int) -> _Facts:
    things, codes = _pairs(rng, _ADJECTIVES, _NOUNS, 8), _numbers(rng, 8, 4)
    pieces = [f"The serial number of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    question = f"What are the serial numbers of the {things[0]} and of the {things[3]}, in this order?"
    return _Facts(pieces, _prose(rng), question, f"{codes[0]}, {codes[3]}", " ")


def _code(rng: random.Random, seed: int) -> _Facts:
    names, values = [name.replace(" ", "_") for name in _pairs(rng, _ADJECTIVES, _NOUNS, 8)], _numbers(rng, 8, 4)
    form = _method if seed % 2 else _function
    pieces = [form(f"{name}_limit", value) for name, value in zip(names, values, strict=True)]
    wanted = f"{_class_name(names[0])}.limit" if seed % 2 else f"{names[0]}_limit"
    question = f"Which number does {wanted}() return in this module?"
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


def _method(name: str, value: str) -> str:
    """A class with one static method: `amber_drum_limit` becomes `AmberDrum.limit`."""
    owner, _, short = name.rpartition("_")
    body = f"    @staticmethod\n    def {short}():\n        return {value}"
    return f"class {_class_name(owner)}:\n{body}"


def _class_name(name: str) -> str:
    return name.title().replace("_", "")


def _pairs(rng: random.Random, first: list[str], second: list[str], count: int) -> list[str]:
    """Distinct pairs; the first has its first word with the second pair, its second with the third: look-alikes."""
    (a, b, *_), (x, y, *_) = one, two = rng.sample(first, len(first)), rng.sample(second, len(second))
    rest = [f"{left} {right}" for left, right in zip(one[2:], two[2:], strict=True)]
    return [f"{a} {x}", f"{a} {y}", f"{b} {x}", *rest][:count]


def _numbers(rng: random.Random, count: int, digits: int) -> list[str]:
    return [str(number) for number in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


_MAKERS = {"needle": _needle, "key_value": _key_value, "multi_key": _multi_key, "code": _code, "key_table": _key_table}
