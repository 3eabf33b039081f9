"""How much of what `full` says is said with KV dropping, with and without renewal, on the questions of `answer_tasks`.

    python tests/bench/renewal_quality.py [answers | table] --target DIR --draft DIR [--minutes 4] [--methods NAME ...]

One SGLang engine. A document is read once, then all methods (`renewal_methods`) answer its questions, greedily, beside
answers about earlier documents. The draft's lookaheads are generated before and kept in a file. Every answer goes to a
JSONL file as it comes, and a rerun goes on where it stopped; status 75: there is more to do. `table` needs no model.
Status 1: a floor is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from answer_tasks import KINDS, Document, Question, documents
from real_engine import running
from renewal_methods import EVERY, FEW, FULL, Method
from renewal_table import floors, table

from presift.core.answer import Finished
from presift.core.generation import Sampling
from presift.models.folder import resolve
from presift.target.engine import GenerateRequest
from presift.target.sglang.engine import SglangEngine

RESULTS = Path(__file__).parent / "results"
ANSWER_TOKENS = 256
# So many answers are generated together: each step reads the weights once for all of them.
AT_ONCE = 24
_COME_AGAIN = 75
# In a full pool, renewals are skipped, and each reads the prompt again beside the request. A row of SGLang's batch is
# taken by every answer and by every renewal.
_ENGINE = {"kv_pool_tokens": 110_000, "max_running": 48, "prefill_chunk_tokens": 4096, "threads": 2}


@dataclass(slots=True)
class Rows:
    """JSON objects in a file, by their values of `key`."""

    file: Path
    key: tuple[str, ...]
    found: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            self._add(json.loads(line))

    def put(self, row: dict[str, Any]) -> None:
        self._add(row)
        with self.file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def _add(self, row: dict[str, Any]) -> None:
        self.found[tuple(row[name] for name in self.key)] = row


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its name and its prompt as token ids, uint32[tokens]."""

    name: str
    document: Document
    question: Question
    ids: np.ndarray


@dataclass(slots=True)
class Bench:
    """The questions that were chosen, and what is known about them."""

    options: argparse.Namespace
    tokenizer: Any
    asked: list[Asked]
    lookaheads: Rows
    answers: Rows
    until_s: float
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    answering: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def methods(self) -> list[Method]:
        """Those that were chosen. `full` is one of them: the others are compared with it."""
        return [Method.of(name) for name in dict.fromkeys((FULL, *self.options.methods))]

    def missing(self, asked: Asked) -> list[Method]:
        return [method for method in self.methods if (asked.name, method.name) not in self.answers.found]

    def lookahead(self, asked: Asked) -> list[int]:
        """The draft's first tokens; empty if no method has needed them."""
        found: list[int] = self.lookaheads.found.get((asked.name,), {}).get("ids", [])
        return found

    def lookahead_is_missing(self, asked: Asked) -> bool:
        """Whether a method needs more of the draft's tokens than were generated."""
        generated: int = self.lookaheads.found.get((asked.name,), {}).get("generated", 0)
        return generated < max(method.lookahead_tokens for method in self.missing(asked) or [Method.of(FULL)])

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until_s


async def run(bench: Bench) -> int:
    """Generate what is missing. The status of the process."""
    undrafted = [asked for asked in bench.asked if bench.lookahead_is_missing(asked)]
    for folder, todo, step in (
        (bench.options.draft, undrafted, _look_ahead),
        (bench.options.target, [asked for asked in bench.asked if bench.missing(asked)], _answer),
    ):
        if not todo:
            continue
        async with running(resolve(folder), **_ENGINE) as engine:
            print(f"{folder}: {len(todo)} questions", flush=True)
            for group in _by_document(todo):
                if not (is_whole := await step(bench, engine, group)):
                    break
            await asyncio.gather(*bench.answering)
        if not is_whole:
            return _COME_AGAIN
    return 0


def _by_document(asked: list[Asked]) -> Iterator[list[Asked]]:
    for document in dict.fromkeys(each.document for each in asked):
        yield [each for each in asked if each.document is document]


async def _look_ahead(bench: Bench, engine: SglangEngine, group: list[Asked]) -> bool:
    """The draft's first tokens, for all questions about one document at once. False if the time is over."""
    if bench.is_over:
        return False
    tokens = max(method.lookahead_tokens for method in bench.methods)
    await _ask(engine, group[0].ids, Method.of(FULL), [], 1)
    said = await asyncio.gather(*(_ask(engine, each.ids, Method.of(FULL), [], tokens) for each in group))
    for each, answer in zip(group, said, strict=True):
        bench.lookaheads.put({"question": each.name, "generated": tokens, "ids": answer.tokens})
    print(f"{group[0].document.form} {group[0].document.tokens}: {len(group)} lookaheads", flush=True)
    return True


async def _answer(bench: Bench, engine: SglangEngine, group: list[Asked]) -> bool:
    """Start the answers of all methods to the questions about one document, once it is read. False if the time is
    over."""
    if bench.is_over:
        return False
    await _ask(engine, group[0].ids, Method.of(FULL), [], 1)
    for asked in group:
        for method in bench.missing(asked):
            await bench.places.acquire()
            bench.answering.append(asyncio.create_task(_keep(bench, engine, asked, method)))
    return True


async def _keep(bench: Bench, engine: SglangEngine, asked: Asked, method: Method) -> None:
    try:
        answer = await _ask(engine, asked.ids, method, bench.lookahead(asked), ANSWER_TOKENS)
    finally:
        bench.places.release()
    row = _row(bench, asked, method, answer)
    bench.answers.put(row)
    print(f"{asked.name} {asked.question.kind}, {method.name}: {len(row['stated'])} of {row['facts']}", flush=True)


@dataclass(slots=True)
class _Said:
    tokens: list[int]
    times_s: list[float]
    end: Finished


async def _ask(engine: SglangEngine, ids: np.ndarray, method: Method, lookahead: list[int], tokens: int) -> _Said:
    """One greedy answer, with the seconds since it was asked for at each token."""
    request = GenerateRequest(ids, Sampling(max_new_tokens=tokens), kv_plan=method.plan(lookahead))
    given, times, started = list[int](), list[float](), time.monotonic()
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return _Said(given, times, event)
            given += event.token_ids
            times += [time.monotonic() - started] * len(event.token_ids)
    raise AssertionError("the stream has no end")


def _row(bench: Bench, asked: Asked, method: Method, answer: _Said) -> dict[str, Any]:
    """One line of the results. The times are those of an engine that serves all methods at once."""
    text, times, end = bench.tokenizer.decode(answer.tokens), answer.times_s, answer.end
    first = method.first_full_tokens
    held = [asked.ids.size if place < first else end.kv_tokens for place in range(len(answer.tokens))]
    return {
        "question": asked.name,
        "kind": asked.question.kind,
        "tokens": asked.document.tokens,
        "method": method.name,
        "prompt": int(asked.ids.size),
        "facts": len(asked.question.facts),
        "stated": asked.question.stated(text),
        "answer": len(answer.tokens),
        "held": end.kv_tokens,
        "mean_held": round(sum(held) / max(1, len(held))),
        "renewals": end.renewals,
        "skipped": end.renewals_skipped,
        "coverage": end.coverage and round(end.coverage, 3),
        "first_ms": round(times[0] * 1e3) if times else None,
        "token_ms": round((times[-1] - times[0]) / (len(times) - 1) * 1e3) if len(times) > 1 else None,
        "said": text,
    }


def chosen(options: argparse.Namespace, tokenizer: Any) -> list[Asked]:
    """The questions that the options select, those about one document together."""

    def prompt(document: Document, question: Question) -> np.ndarray:
        chat = [{"role": "user", "content": document.prompt(question)}]
        return np.array(tokenizer.encode(tokenizer.apply_chat_template(chat, **_TEMPLATE)), dtype=np.uint32)

    found = [
        Asked(document.name(question), document, question, prompt(document, question))
        for document in documents(lambda text: len(tokenizer.encode(text)))
        if document.tokens in options.tokens
        for question in document.questions
        if question.kind in options.kinds
    ]
    return found[: options.limit]


_TEMPLATE = {"tokenize": False, "add_generation_prompt": True}


def main() -> int:
    options = _parser().parse_args()
    answers = Rows(options.results, ("question", "method"))
    status = 0
    if options.what == "answers":
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.target)
        until_s = time.monotonic() + 60 * options.minutes
        lookaheads = Rows(options.results.with_suffix(".lookaheads.jsonl"), ("question",))
        bench = Bench(options, tokenizer, chosen(options, tokenizer), lookaheads, answers, until_s)
        status = asyncio.run(run(bench))
    rows = [row for row in answers.found.values() if row["kind"] in options.kinds and row["tokens"] in options.tokens]
    print(table(rows))
    missed = floors(rows)
    print("\n".join(missed))
    return status or int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("answers", "table"), default="answers")
    parser.add_argument("--target", help="folder of the target")
    parser.add_argument("--draft", help="folder of the draft")
    parser.add_argument("--results", type=Path, default=RESULTS / "renewal_quality.jsonl")
    parser.add_argument("--methods", nargs="+", default=FEW, help=f"default: {' '.join(FEW)}; all: {' '.join(EVERY)}")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--tokens", nargs="+", type=int, default=(2000, 6000, 12000), help="lengths of documents")
    parser.add_argument("--limit", type=int, help="the first so many of the questions")
    parser.add_argument("--minutes", type=float, default=600, help="start no document after so long (status 75)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
