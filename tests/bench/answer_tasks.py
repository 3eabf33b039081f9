"""Questions whose answers need one or many places of a document: by which KV dropping and its renewal are judged.

Nine kinds, answers of about 20 to 250 tokens. Several questions share one document, so that its KV is read once. A
document is a pure function of (form, tokens, seed). Nothing is worded like the prompts of `recall_tasks`, of
`retrieval_tasks` or of the calibration of heads.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import answer_filler
from answer_kinds import CALLS, PROSE, Asked, Names, twelve_named

Count = Callable[[str], int]

CALL_SITES = "call sites"
_TWELVE, _TWELVE_NAMED = "twelve facts", "twelve named"
KINDS = (*PROSE, _TWELVE_NAMED, CALL_SITES)
_SITES = 5
_SENTENCES = 5

# The kinds of questions about a document in prose, by its form. A form has one list of names and numbers: about two of
# them, a small target answers with a mixture, and what it states with the whole KV is no measure.
FORMS = {
    "lists": ("six facts", "compare"),
    "streets": (_TWELVE, "multi-hop", "one fact", _TWELVE_NAMED),
    "events": ("aggregate", "summary"),
}
_CODE = "code"

# Wanted tokens, form and seed of each document, in the order of the benchmark: what has run when it stops is mixed.
SERIES = (
    *((2000, form, seed) for seed in range(3) for form in (*FORMS, _CODE)),
    *((2000, form, seed) for seed in range(3, 6) for form in FORMS),
    *((6000, form, seed) for seed in range(6, 9) for form in FORMS),
    (6000, _CODE, 3),
    *((12000, form, 9) for form in FORMS),
)


@dataclass(frozen=True, slots=True)
class Question:
    """`facts`: an answer states one if all its words stand in one line of it."""

    kind: str
    text: str
    facts: tuple[tuple[str, ...], ...]

    def stated(self, answer: str) -> list[int]:
        """Which of the facts `answer` states, by index. Case, punctuation and digit grouping do not count."""
        lines = [f" {_normalised(line)} " for line in answer.splitlines()]
        return [
            index
            for index, fact in enumerate(self.facts)
            if any(all(f" {_normalised(word)} " in line for word in fact) for line in lines)
        ]


@dataclass(frozen=True, slots=True)
class Document:
    """`tokens` is the wanted length of `text`."""

    form: str
    tokens: int
    seed: int
    text: str
    questions: tuple[Question, ...]

    def name(self, question: Question) -> str:
        """The name of one of its questions in the results."""
        return f"{self.form}-{self.tokens}-{self.seed}-{self.questions.index(question)}"

    def prompt(self, question: Question) -> str:
        """The document comes first, so that its questions share the KV of it."""
        return f"{self.text}\n\n{question.text}"


def documents(count: Count) -> list[Document]:
    """The documents of the benchmark, as long as wanted by the tokens that `count` counts."""
    return [make(form, tokens, seed, count) for tokens, form, seed in SERIES]


def make(form: str, tokens: int, seed: int, count: Count) -> Document:
    """The document of a form of FORMS, or "code", of `tokens` tokens or a few more."""
    dice = random.Random(f"answers {form} {tokens} {seed}")
    return _code(dice, tokens, seed, count) if form == _CODE else _prose(dice, form, tokens, seed, count)


def _prose(dice: random.Random, form: str, tokens: int, seed: int, count: Count) -> Document:
    setting, names = seed % 3, Names.of(dice)
    asked = {kind: PROSE[kind](names, setting) for kind in FORMS[form] if kind in PROSE}
    if _TWELVE in asked:
        asked[_TWELVE_NAMED] = twelve_named(asked[_TWELVE], setting)
    stories, filler = [each.passages for each in asked.values()], answer_filler.prose(dice, setting)
    length = sum(count(f" {passage}") for story in stories for passage in story)
    filling = list[str]()
    while length < tokens:
        filling.append(next(filler))
        length += count(f" {filling[-1]}")
    sentences = _mixed(dice, stories, filling)
    paragraphs = (" ".join(sentences[at : at + _SENTENCES]) for at in range(0, len(sentences), _SENTENCES))
    return Document(form, tokens, seed, "\n\n".join(paragraphs), _questions(asked.items()))


def _code(dice: random.Random, tokens: int, seed: int, count: Count) -> Document:
    names, functions = Names.of(dice), answer_filler.function_names(dice)
    asked, stories = [], list[list[str]]()
    for call, question in CALLS:
        sites = [(next(functions), names.number()) for _ in range(_SITES)]
        stories.append([answer_filler.function(dice, name, call.format(number=number)) for name, number in sites])
        asked.append((CALL_SITES, Asked(stories[-1], question, [(number,) for _, number in sites])))
    length = sum(count(f"{piece}\n\n\n") for story in stories for piece in story)
    filling = list[str]()
    while length < tokens:
        filling.append(answer_filler.function(dice, next(functions)))
        length += count(f"{filling[-1]}\n\n\n")
    return Document(_CODE, tokens, seed, "\n\n\n".join(_mixed(dice, stories, filling)), _questions(asked))


def _mixed(dice: random.Random, stories: list[list[str]], filling: list[str]) -> list[str]:
    """Passages and filler. Those of one story keep their order and are spread over the whole document."""
    placed = [(dice.random(), piece) for piece in filling]
    for story in stories:
        placed += [((place + dice.random()) / len(story), piece) for place, piece in enumerate(story)]
    return [piece for _, piece in sorted(placed, key=lambda each: each[0])]


def _questions(asked: Iterable[tuple[str, Asked]]) -> tuple[Question, ...]:
    return tuple(Question(kind, each.question, tuple(each.facts)) for kind, each in asked)


def _normalised(text: str) -> str:
    joined = re.sub(r"(?<=\d)[,](?=\d)", "", text.lower())
    return " ".join(re.findall(r"[a-z0-9_]+", joined))
