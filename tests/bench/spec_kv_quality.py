"""Accuracy of SpecKV, SpecKV-PC, SpecPC and DRAFT_MASK against the full prompt, newest-C-only and SnapKV.

    python tests/bench/spec_kv_quality.py [draft | target | report] [--limit N] [--draft DIR]

The real pair, bf16, on the fixed set of `retrieval_tasks`: the draft first, alone; then the target in SGLang. Without
a command all three stages run. Every answer is written to `results/` as it comes; a rerun goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from retrieval_drafts import digest, load_draft
from retrieval_tasks import Task, fixed_set, is_right
from spec_kv_methods import FAMILIES, family, full
from spec_kv_table import table

from presift.cli.settings import CliSettings
from presift.core.answer import AnswerDelta
from presift.core.errors import PresiftError
from presift.models.folder import resolve
from presift.orchestrator.prompt.loader import load_tokenizer
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.target.engine import GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

RESULTS = Path(__file__).parent / "results"
MODELS = CliSettings().home / "models"
DRAFT, TARGET = (MODELS / f"qwen2.5-coder-{size}-instruct" for size in ("0.5b", "1.5b"))

REPORTED = (
    *("prompt_tokens", "cached_tokens", "completion_tokens", "kv_tokens"),
    *("reused_entry", "score_ms", "publish_ms", "coverage"),
)


class Record:
    """A JSON object in a file, written whole after each change."""

    def __init__(self, name: str) -> None:
        self._path = RESULTS / name
        self.values: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value
        RESULTS.mkdir(exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        rows = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in self.values.items())
        temporary.write_text("{\n" + ",\n".join(rows) + "\n}\n")
        temporary.replace(self._path)


def tasks_of(tokenizer: PromptTokenizer, limit: int) -> list[Task]:
    backend = tokenizer.backend
    assert backend is not None
    return fixed_set(lambda text: len(backend.encode(text, add_special_tokens=False).ids))[:limit]


async def run_draft(draft: str, tokenizer: PromptTokenizer, tasks: list[Task], drafts: Record) -> None:
    """Reads every prompt that is not in the file yet; the model is gone afterwards."""
    reader = None
    for task in tasks:
        tokens = await tokenizer.tokenize(task.chat)
        if drafts.values.get(task.name, {}).get("digest") == digest(tokens):
            continue
        reader = reader or load_draft(resolve(draft), tokenizer)
        started = time.monotonic()
        drafts.put(task.name, reader.read(task, tokens))
        right = drafts.values[task.name]["right"]
        print(f"{task.name}: {tokens.ids.size} tokens, right {right}, {time.monotonic() - started:.1f} s", flush=True)
    del reader
    gc.collect()


async def run_target(tokenizer: PromptTokenizer, tasks: list[Task], drafts: Record, answers: Record) -> None:
    """Asks the target by every method what is not in the file yet."""
    todo = [task for task in tasks if task.name in drafts.values and task.name not in answers.values]
    if not todo:
        return
    folder = resolve(str(TARGET))
    engine = SglangEngine(SglangOptions(folder, kv_pool_tokens=40_000, prefill_chunk_tokens=512))
    try:
        await engine.start()
        for task in todo:
            started = time.monotonic()
            row = await ask_all(engine, tokenizer, task, drafts.values[task.name])
            answers.put(task.name, row)
            marks = "".join("x" if answer["right"] else "." for answer in row["answers"].values())
            print(
                f"{task.name}: {row['prompt_tokens']} tokens, {marks}, {time.monotonic() - started:.1f} s", flush=True
            )
    finally:
        await engine.stop()


async def ask_all(engine: SglangEngine, tokenizer: PromptTokenizer, task: Task, record: dict[str, Any]) -> Any:
    """One row of the results: full first, whose KV the others share; then all others at once."""
    tokens = await tokenizer.tokenize(task.chat)
    assert record["digest"] == digest(tokens)

    async def one_by_one(requests: dict[str, GenerateRequest]) -> dict[str, Any]:
        return {name: await ask(engine, tokenizer, task, request) for name, request in requests.items()}

    answers = await one_by_one({"full": full(tokens)})
    for found in await asyncio.gather(*(one_by_one(family(name, tokens, record)) for name in FAMILIES)):
        answers |= found
    common = {"kind": task.kind, "prompt_tokens": int(tokens.ids.size), "draft_right": record["right"]}
    return common | {"answer": task.answer, "answers": answers}


async def ask(engine: SglangEngine, tokenizer: PromptTokenizer, task: Task, request: GenerateRequest) -> dict[str, Any]:
    """The answer and what the engine reports; an error is a wrong answer that says so."""
    started, found, report = time.monotonic(), list[int](), dict[str, Any]()
    try:
        async for event in engine.generate(request):
            if isinstance(event, AnswerDelta):
                found += event.token_ids
            else:
                report = {name: getattr(event, name) for name in REPORTED}
    except PresiftError as error:
        report = {"error": f"{type(error).__name__}: {error.message}"}
    assert tokenizer.backend is not None
    text = tokenizer.backend.decode(found)
    wall_s = round(time.monotonic() - started, 1)
    return {"right": "error" not in report and is_right(task, text), "text": text, "wall_s": wall_s, **report}


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=("draft", "target", "report"))
    parser.add_argument("--limit", type=int, default=None, help="the first so many tasks")
    parser.add_argument(
        "--draft", default=str(DRAFT), help="another draft's folder; its results go to files of its name"
    )
    options = parser.parse_args()
    suffix = "" if options.draft == str(DRAFT) else f"_{Path(options.draft).name}"
    tokenizer = load_tokenizer(str(TARGET), 0)
    tasks = tasks_of(tokenizer, options.limit)
    drafts = Record(f"spec_kv_quality_drafts{suffix}.json")
    if options.stage in (None, "draft"):
        await run_draft(options.draft, tokenizer, tasks, drafts)
    answers = Record(f"spec_kv_quality{suffix}.json")
    if options.stage in (None, "target"):
        await run_target(tokenizer, tasks, drafts, answers)
    print(table(answers.values))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
