"""Writes the questions of `answer_tasks` and `retrieval_tasks` as a file for `presift eval`.

    python tests/bench/own_suite.py --lengths 2k,6k --per-kind 2 > FILE.jsonl && presift eval FILE.jsonl

A right answer states all values that are asked for; one that states some of several scores their share. Where a list
pairs names with numbers, only the numbers count: each stands once in its document, but under which name is not checked.
A prompt is a pure function of (kind, length, number).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import answer_tasks
import retrieval_tasks
from answer_tasks import CALL_SITES, FORMS
from tokenizers import Tokenizer

Line = dict[str, Any]
# What the kinds' benchmarks allow, and room for a sentence around a short answer.
_ANSWER_TOKENS, _SHORT_ANSWER_TOKENS = 256, 64
_SCORER = "contains_share"
_LENGTH = re.compile(r"([1-9]\d*)(k?)")


def lines(lengths: list[int], per_kind: int, count: answer_tasks.Count) -> Iterator[Line]:
    """The lines of the file: for each length, `per_kind` questions of every kind. Those of one document follow each
    other. `count` counts tokens."""
    for tokens in lengths:
        for form in (*FORMS, "code"):
            yield from _answers(form, tokens, per_kind, count)
        for kind in retrieval_tasks.KINDS:
            for seed in range(per_kind):
                yield _retrieval(retrieval_tasks.make(kind, tokens, seed, count))


def _answers(form: str, tokens: int, per_kind: int, count: answer_tasks.Count) -> Iterator[Line]:
    """A document in prose has one question of each of its kinds, a module several of one kind."""
    left = dict.fromkeys(FORMS.get(form, (CALL_SITES,)), per_kind)
    seed = 0
    while any(left.values()):
        document = answer_tasks.make(form, tokens, seed, count)
        for question in document.questions:
            if left[question.kind]:
                left[question.kind] -= 1
                yield {
                    "id": document.name(question),
                    "kind": question.kind,
                    "messages": [_user(document.text, question.text)],
                    "expected": [_value(fact) for fact in question.facts],
                    "scorer": _SCORER,
                    "max_new_tokens": _ANSWER_TOKENS,
                }
        seed += 1


def _value(fact: tuple[str, ...]) -> str:
    """What an answer must say of a fact. A total may be so small that the number alone stands in any list."""
    return f"total: {fact[1]}" if fact[0] == "total" else fact[-1]


def _retrieval(task: retrieval_tasks.Task) -> Line:
    question = f"{task.question} Reply with the answer alone."
    return {
        "id": task.name,
        "kind": task.kind,
        "messages": [{"role": "system", "content": retrieval_tasks.SYSTEM}, _user(task.document, question)],
        "expected": task.answer.split(", "),
        "scorer": _SCORER,
        "max_new_tokens": _SHORT_ANSWER_TOKENS,
    }


def _user(document: str, question: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"text": document}, {"text": f"\n\n{question}", "protected": True}]}


def _lengths(words: str) -> list[int]:
    """As `presift eval --lengths`: 4k is 4096."""
    found = dict[int, None]()
    for word in words.split(","):
        match = _LENGTH.fullmatch(word.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"has '{word}'; each must be a number of tokens, such as 4096 or 4k")
        found[int(match[1]) * (1024 if match[2] else 1)] = None
    return list(found)


def _counter(tokenizer: str | None) -> answer_tasks.Count:
    if tokenizer is None:
        return lambda text: len(re.findall(r"\w+|[^\w\s]", text))
    loaded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    return lambda text: len(loaded.encode(text).ids)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=_lengths, default="2k", help="of the documents, separated by commas: 2k,6k")
    parser.add_argument("--per-kind", type=int, default=2, help="questions of each kind and length")
    parser.add_argument("--tokenizer", help="folder of the target, which counts the lengths; unset: words and signs")
    options = parser.parse_args()
    for line in lines(options.lengths, options.per_kind, _counter(options.tokenizer)):
        print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
