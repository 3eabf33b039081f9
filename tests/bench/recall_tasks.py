"""Questions by which drafts are compared: where in a document the answer stands, so that recall needs no target.

Six kinds, none worded like the prompts that head profiles are calibrated on (`presift.draft.calibration_prompts`):

- paraphrase: the question shares no content word with the fact but the name;
- several: four facts, spread over the document, make the answer;
- code: the default value of one parameter of a function in a module;
- table: one cell of a Markdown table with 30 rows;
- multi_hop: the second fact is found through the first;
- agent: one line of a long tool log, asked for by its job number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from retrieval_kinds import MAKERS

Count = Callable[[str], int]

_WORDS = """
Abena Boris Chiara Dalia Emeka Fumiko Gustav Halima Ivo Jelena Kofi Linnea Marco Nadia Orla Pavel
Lyon Porto Ghent Turku Graz Bergen Malmo Riga Trieste Split Cork Basel Lodz Vigo Bari Tampa
glazier beekeeper cartographer locksmith surgeon violinist judge baker welder pilot
rotor valve gasket spindle bracket nozzle flange bearing coupling washer
"""
_NAMES, _CITIES, _JOBS, _PARTS = (line.split() for line in _WORDS.strip().splitlines())
_WORK = (
    "fits window panes",
    "looks after hives",
    "draws maps",
    "repairs doors that will not open",
    "operates on patients",
    "plays in an orchestra",
    "decides cases in court",
    "makes bread before dawn",
    "joins steel beams",
    "flies passengers abroad",
)


@dataclass(frozen=True, slots=True)
class RecallTask:
    """`needles`: the (fact, answer) pairs that must survive. Each answer stands in its fact."""

    kind: str
    document: str
    question: str
    needles: tuple[tuple[str, str], ...]

    @property
    def answer(self) -> str:
        """The last needle's answer, or all of them if several are asked for."""
        return ", ".join(answer for _, answer in self.needles) if self.kind == "several" else self.needles[-1][1]


def make(kind: str, tokens: int, seed: int, count: Count) -> RecallTask:
    """The task whose document has about `tokens` tokens, as `count` counts them."""
    rng = random.Random(f"recall {kind} {tokens} {seed}")
    needles, decoys, question, filler, joint = _MAKERS[kind](rng)
    pieces = [fact for fact, _ in needles] + decoys
    length = sum(count(piece + joint) for piece in pieces)
    while length < tokens:
        pieces.append(next(filler))
        length += count(pieces[-1] + joint)
    rng.shuffle(pieces)
    return RecallTask(kind, joint.join(pieces), question, tuple(needles))


_Made = tuple[list[tuple[str, str]], list[str], str, Iterator[str], str]


def _prose(rng: random.Random) -> Iterator[str]:
    return MAKERS["needle"](rng, 0).filler


def _paraphrase(rng: random.Random) -> _Made:
    people, jobs, cities = rng.sample(_NAMES, 5), rng.sample(range(len(_JOBS)), 5), rng.sample(_CITIES, 5)
    facts = [
        f"{who}, who {_WORK[job]} for a living, moved to {city} last spring."
        for who, job, city in zip(people, jobs, cities, strict=True)
    ]
    question = f"In which city does the {_JOBS[jobs[0]]} live now?"
    return [(facts[0], cities[0])], facts[1:], question, _prose(rng), " "


def _several(rng: random.Random) -> _Made:
    team, others = rng.sample(_NAMES, 4), rng.sample(_CITIES, 8)
    facts = [f"{who} will present the results in {city}." for who, city in zip(team, others[:4], strict=True)]
    decoys = [f"{who} has never been to {city}." for who, city in zip(team, others[4:], strict=True)]
    question = "In which cities will the results be presented?"
    return list(zip(facts, others[:4], strict=True)), decoys, question, _prose(rng), " "


def _code(rng: random.Random) -> _Made:
    names = [f"load_{part}_{job}" for part in rng.sample(_PARTS, 5) for job in rng.sample(_JOBS, 1)]
    values = rng.sample(range(10, 900), 5)
    facts = [
        f"def {name}(path, retries={value}):\n    return _open(path, retries)"
        for name, value in zip(names, values, strict=True)
    ]
    filler = MAKERS["code"](rng, 0).filler
    return [(facts[0], str(values[0]))], facts[1:], f"How often does {names[0]} retry by default?", filler, "\n\n\n"


def _table(rng: random.Random) -> _Made:
    codes, prices = rng.sample(range(1000, 9999), 30), rng.sample(range(10, 999), 30)
    rows = [
        f"| {rng.choice(_PARTS)}-{code} | {rng.choice(_CITIES)} | {rng.randrange(3, 99)} pcs | {price}.50 EUR |"
        for code, price in zip(codes, prices, strict=True)
    ]
    cells = rows[0].split(" | ")
    question = f"What does the part {cells[0].removeprefix('| ')} cost?"
    return [(rows[0], cells[3].removesuffix(" EUR |"))], rows[1:], question, _prose(rng), "\n"


def _multi_hop(rng: random.Random) -> _Made:
    people, cities, codes = rng.sample(_NAMES, 5), rng.sample(_CITIES, 5), rng.sample(range(1000, 9999), 5)
    lives = [f"The house in {city} was bought by {who}." for city, who in zip(cities, people, strict=True)]
    badges = [f"Badge {code} was issued to {who}." for code, who in zip(codes, people, strict=True)]
    needles = [(lives[0], people[0]), (badges[0], str(codes[0]))]
    question = f"Which badge number has the buyer of the house in {cities[0]}?"
    return needles, lives[1:] + badges[1:], question, _prose(rng), " "


def _agent(rng: random.Random) -> _Made:
    def line() -> tuple[int, str, str]:
        job, status = rng.randrange(10**5, 10**6), f"exit code {rng.randrange(2, 250)}"
        return (
            job,
            status,
            f"[{rng.randrange(24):02d}:{rng.randrange(60):02d}] job {job} on node-{rng.randrange(40)}: {status}",
        )

    job, status, wanted = line()
    filler = (line()[2] for _ in iter(int, 1))
    return [(wanted, status.removeprefix("exit code "))], [], f"With which exit code did job {job} end?", filler, "\n"


_MAKERS: dict[str, Callable[[random.Random], _Made]] = {
    "paraphrase": _paraphrase,
    "several": _several,
    "code": _code,
    "table": _table,
    "multi_hop": _multi_hop,
    "agent": _agent,
}
KINDS = tuple(_MAKERS)
