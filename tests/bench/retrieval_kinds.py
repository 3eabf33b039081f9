"""The kinds of retrieval questions: what a document must hold, what fills it, and what is asked.

- needle: one fact in prose;
- key_value: one of 40 random keys, each with a value of its own, on lines amid prose;
- multi_key: two facts in prose, both of which the answer must give;
- key_table: one of many lines of random keys and values, and nothing else;
- code: what a function (even seeds) or a method of a class (odd) of a long module returns.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_WORDS = """
amber brisk copper dusty eager faded gentle hollow ivory jagged keen lunar mossy narrow olive pale
anchor barrel compass drum easel flute globe hammer inkwell jug kettle lantern mirror needle oar prism
archive bakery chapel dockyard embassy foundry granary harbour island junction library mill
Adela Bruno Cosima Dmitri Elspeth Farid Greta Hugo Ines Jonas Katya Leopold Mirela Nils Olga Piet
cleaned drawn hidden inspected lent measured moved painted praised repaired sold weighed
"""
_ADJECTIVES, _NOUNS, _PLACES, _PEOPLE, _DEEDS = (line.split() for line in _WORDS.strip().splitlines())


@dataclass(frozen=True, slots=True)
class Facts:
    """What a document must hold, in any order, amid what fills it."""

    pieces: list[str]
    filler: Iterator[str]
    question: str
    answer: str
    joint: str


def _needle(rng: random.Random, seed: int) -> Facts:
    things, codes = _pairs(rng, _ADJECTIVES, _NOUNS, 6), _numbers(rng, 6, 5)
    pieces = [f"The serial number of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    return Facts(pieces, _prose(rng), f"What is the serial number of the {things[0]}?", codes[0], " ")


def _key_value(rng: random.Random, seed: int) -> Facts:
    keys = [str(uuid.UUID(int=rng.getrandbits(128)))[:23] for _ in range(40)]
    values = _numbers(rng, len(keys), 5)
    lines = [f"The value of {key} is {value}." for key, value in zip(keys, values, strict=True)]
    return Facts(lines, _prose(rng), f"What is the value of {keys[0]}?", values[0], "\n")


def _key_table(rng: random.Random, seed: int) -> Facts:
    def line() -> tuple[str, str]:
        return str(uuid.UUID(int=rng.getrandbits(128)))[:23], str(rng.randrange(100_000, 1_000_000))

    key, value = line()
    others = (f"{other}: {found}" for other, found in iter(line, None))
    return Facts([f"{key}: {value}"], others, f"Which value belongs to the key {key}?", value, "\n")


def _multi_key(rng: random.Random, seed: int) -> Facts:
    things, codes = _pairs(rng, _ADJECTIVES, _NOUNS, 8), _numbers(rng, 8, 4)
    pieces = [f"The serial number of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    question = f"What are the serial numbers of the {things[0]} and of the {things[3]}, in this order?"
    return Facts(pieces, _prose(rng), question, f"{codes[0]}, {codes[3]}", " ")


def _code(rng: random.Random, seed: int) -> Facts:
    names, values = [name.replace(" ", "_") for name in _pairs(rng, _ADJECTIVES, _NOUNS, 8)], _numbers(rng, 8, 4)
    form = _method if seed % 2 else _function
    pieces = [form(f"{name}_limit", value) for name, value in zip(names, values, strict=True)]
    wanted = f"{_class_name(names[0])}.limit" if seed % 2 else f"{names[0]}_limit"
    question = f"Which number does {wanted}() return in this module?"
    return Facts(pieces, _functions(rng, set(names)), question, values[0], "\n\n\n")


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


# By (random, seed); all that is random comes from the first.
MAKERS: dict[str, Callable[[random.Random, int], Facts]] = {
    "needle": _needle,
    "key_value": _key_value,
    "multi_key": _multi_key,
    "code": _code,
    "key_table": _key_table,
}
