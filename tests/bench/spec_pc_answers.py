"""The target's answers to prompts compressed by several scorings: what recall is worth in the end.

    python tests/bench/spec_pc_answers.py SCORING ... --draft DIR --target DIR --seeds 30 [--minutes 14]

The masks come from what `spec_pc_captures` kept, the scorings are written as for `spec_pc_defaults`. Greedy answers of
the target in SGLang; right is one that has all that was asked for. `full` is the prompt as it is, up to `--full-up-to`
tokens. Every answer is kept beside the captures; a rerun goes on where it stopped. Prints the share of right answers
by scoring and capacity, and the prompts won and lost against the first scoring.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from recall_tasks import RecallTask
from retrieval_tasks import Task, is_right
from spec_pc_captures import CACHE, LENGTHS, Captured, load, task_of
from spec_pc_defaults import Ranking, parse

from presift.core.answer import AnswerDelta
from presift.core.generation import Sampling
from presift.core.selection import select
from presift.draft import head_profile
from presift.models.folder import resolve
from presift.orchestrator.prompt.loader import load_tokenizer
from presift.target.engine import GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

CAPACITIES = (256, 512, 1024)
_SAMPLING = Sampling(max_new_tokens=32)
_COME_AGAIN = 75


@dataclass(slots=True)
class Answers:
    """Right or wrong by (prompt, scoring, capacity), in a file."""

    file: Path
    rows: dict[tuple[str, str, int], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            prompt, scoring, capacity, right, _ = json.loads(line)
            self.rows[prompt, scoring, capacity] = right

    def put(self, prompt: str, scoring: str, capacity: int, right: bool, text: str) -> None:
        self.rows[prompt, scoring, capacity] = right
        with self.file.open("a") as stream:
            stream.write(json.dumps([prompt, scoring, capacity, right, text]) + "\n")


@dataclass(slots=True)
class Asker:
    """The target; it starts when the first prompt is sent."""

    folder: Any
    tokenizer: Any
    answers: Answers
    engine: SglangEngine | None = None

    async def ask(self, captured: Captured, kept_by: dict[tuple[str, int], Any]) -> None:
        """All that `kept_by` (scoring, capacity) names and is not answered; equal masks are asked once."""
        todo = {key: kept for key, kept in kept_by.items() if (captured.name, *key) not in self.answers.rows}
        if not todo:
            return
        task, chat = task_of(captured.kind, captured.length, captured.seed, self.tokenizer)
        ids, asked = (await self.tokenizer.tokenize(chat)).ids, dict[bytes, str]()
        started = time.monotonic()
        for (scoring, capacity), kept in todo.items():
            text = asked.get(kept.tobytes())
            if text is None:
                text = asked[kept.tobytes()] = await self._answer(ids[kept])
            self.answers.put(captured.name, scoring, capacity, has_all(task, text), text)
        marks = "".join("x" if self.answers.rows[(captured.name, *key)] else "." for key in todo)
        print(f"{captured.name}: {marks}, {len(asked)} different, {time.monotonic() - started:.0f} s", flush=True)

    async def stop(self) -> None:
        if self.engine is not None:
            await self.engine.stop()

    async def _answer(self, ids: Any) -> str:
        if self.engine is None:
            self.engine = SglangEngine(SglangOptions(self.folder, kv_pool_tokens=20_000, prefill_chunk_tokens=512))
            await self.engine.start()
        found = list[int]()
        async for event in self.engine.generate(GenerateRequest(ids, _SAMPLING)):
            if isinstance(event, AnswerDelta):
                found += event.token_ids
        return str(self.tokenizer.backend.decode(found))


def has_all(task: RecallTask, text: str) -> bool:
    """Whether everything that was asked for stands in `text`."""
    wanted = [answer for _, answer in task.needles] if task.kind == "several" else [task.answer]
    return all(is_right(Task(task.kind, 0, 0, "", "", each), text) for each in wanted)


def masks(captured: Captured, options: argparse.Namespace, ranking: Ranking) -> Iterator[tuple[tuple[str, int], Any]]:
    """(scoring, capacity) and bool[n]."""
    for text in options.scorings:
        scoring = parse(text, ranking)
        importance = scoring.importance(captured)
        for capacity in options.capacities:
            policy = replace(scoring.policy, capacity=capacity)
            yield (text, capacity), select(importance, policy, captured.protected).kept
    if captured.length <= options.full_up_to:
        yield ("full", 0), np.ones(importance.size, dtype=np.bool_)


async def run(options: argparse.Namespace, answers: Answers) -> int:
    folder, until = resolve(options.draft), time.monotonic() + 60 * options.minutes
    profile = head_profile.find("auto", folder, Path("/nonexistent"))
    ranking = Ranking(() if profile is None else profile.heads, None)
    asker = Asker(resolve(options.target), load_tokenizer(options.target, 1 << 20), answers)
    try:
        for captured in load(options.cache, folder.path.name):
            if captured.seed not in options.seeds:
                continue
            if time.monotonic() > until:
                return _COME_AGAIN
            await asker.ask(captured, dict(masks(captured, options, ranking)))
    finally:
        await asker.stop()
    return 0


def report(options: argparse.Namespace, answers: Answers) -> None:
    """The shares of right answers, paired with the first scoring at the same capacity."""
    for scoring in (*options.scorings, "full"):
        for capacity in options.capacities if scoring != "full" else (0,):
            found = {
                prompt: right
                for (prompt, name, size), right in answers.rows.items()
                if (name, size) == (scoring, capacity) and int(prompt.rsplit("-", 1)[1]) in options.seeds
            }
            first = {prompt: answers.rows.get((prompt, options.scorings[0], capacity)) for prompt in found}
            won = sum(right and first[prompt] is False for prompt, right in found.items())
            lost = sum(not right and first[prompt] is True for prompt, right in found.items())
            lengths = {
                length: [right for prompt, right in found.items() if f"-{length}-" in prompt] for length in LENGTHS
            }
            shares = ", ".join(f"{sum(each)}/{len(each)} at {length}" for length, each in lengths.items() if each)
            print(f"{scoring:34} {capacity:5}: {sum(found.values())} of {len(found)}, +{won} -{lost}; {shares}")


def main() -> int:
    options = _parser().parse_args()
    answers = Answers(options.cache / f"answers-{resolve(options.draft).path.name}.jsonl")
    status = asyncio.run(run(options, answers))
    report(options, answers)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorings", nargs="+", help="scorings to compare, the first with all others")
    parser.add_argument("--draft", required=True, help="folder of the draft")
    parser.add_argument("--target", required=True, help="folder of the target")
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--capacities", nargs="+", type=int, default=CAPACITIES)
    parser.add_argument("--full-up-to", type=int, default=0, help="ask the whole prompt too, if it is no longer")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--minutes", type=float, default=600, help="start no prompt after so long (status 75)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
