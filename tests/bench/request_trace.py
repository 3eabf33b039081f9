"""A mixed trace of requests over made-up documents: short, long and new, the same document again, the same request
again, conversations that grow. A pure function of its seed; lengths in words, budgets in tokens and milliseconds."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

_NOUNS = [
    "lamp",
    "lens",
    "keeper",
    "boat",
    "ledger",
    "tide",
    "harbour",
    "signal",
    "storm",
    "rope",
    "barrel",
    "window",
    "stair",
    "bell",
    "anchor",
    "chart",
]
_VERBS = [
    "cleaned",
    "moved",
    "counted",
    "lost",
    "repaired",
    "painted",
    "sold",
    "found",
    "measured",
    "locked",
    "lifted",
    "turned",
]
SHARES = {"short": 0.30, "long": 0.25, "same document": 0.20, "same request": 0.10, "conversation": 0.15}


@dataclass(frozen=True, slots=True)
class Entry:
    """One request as a client's keyword arguments. `kind` is one of SHARES."""

    kind: str
    messages: list[dict[str, Any]]
    budget: dict[str, Any] = field(default_factory=dict)


def trace(count: int, seed: int, words: tuple[int, int], budgets: list[dict[str, Any]]) -> list[Entry]:
    """`count` requests. Long documents have `words[0]` to `words[1]` words; `budgets` go to all that is not short."""
    rng = random.Random(seed)
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(count * share))]
    rng.shuffle(kinds)
    entries: list[Entry] = []
    for kind in kinds:
        entries.append(_entry(kind, entries, rng, words, budgets))
    return entries


def _entry(kind: str, before: list[Entry], rng: random.Random, words: tuple[int, int], budgets: Any) -> Entry:
    if kind == "short":
        return Entry(kind, _asked(_document(rng, rng.randint(40, 400)), rng))
    # What comes again is of the last few: a cache that forgot it is another matter.
    earlier = [each for each in before if each.kind != "short"][-8:]
    if kind == "long" or not earlier:
        return Entry("long", _asked(_document(rng, rng.randint(*words)), rng), rng.choice(budgets))
    chosen = rng.choice(earlier)
    if kind == "same request":
        return Entry(kind, chosen.messages, chosen.budget)
    if kind == "same document":
        return Entry(kind, _asked(chosen.messages[0]["content"][0]["text"], rng), rng.choice(budgets))
    turn = [{"role": "assistant", "content": _document(rng, 30)}, {"role": "user", "content": _question(rng)}]
    return Entry(kind, [*chosen.messages, *turn], rng.choice(budgets))


def _asked(document: str, rng: random.Random) -> list[dict[str, Any]]:
    content = [{"text": document}, {"text": f"\n\n{_question(rng)}", "protected": True}]
    return [{"role": "user", "content": content}]


def _question(rng: random.Random) -> str:
    return f"Who {rng.choice(_VERBS)} the {rng.choice(_NOUNS)} on day {rng.randint(1, 999)}?"


def _document(rng: random.Random, words: int) -> str:
    sentences = []
    for number in range(words // 10 + 1):
        noun, other = rng.sample(_NOUNS, 2)
        sentences.append(
            f"On day {number} keeper {rng.randint(1, 99)} {rng.choice(_VERBS)} the {noun} and the {other}."
        )
    return " ".join(sentences)
