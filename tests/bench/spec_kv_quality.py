"""Accuracy of SpecKV, SpecKV-PC, SpecPC and DRAFT_MASK against the full prompt, newest-C-only and SnapKV.

    python tests/bench/spec_kv_quality.py [draft | target | report] [--limit N]

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
from retrieval_tasks import Task, fixed_set

from presift.cli.settings import CliSettings
from presift.draft import model_folder
from presift.orchestrator.loading import load_tokenizer
from presift.orchestrator.tokenizer import PromptTokenizer

RESULTS = Path(__file__).parent / "results"
MODELS = CliSettings().home / "models"
DRAFT, TARGET = (MODELS / f"qwen2.5-coder-{size}-instruct" for size in ("0.5b", "1.5b"))


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


async def run_draft(tokenizer: PromptTokenizer, tasks: list[Task], drafts: Record) -> None:
    """Reads every prompt that is not in the file yet; the model is gone afterwards."""
    reader = None
    for task in tasks:
        tokens = await tokenizer.tokenize(task.chat)
        if drafts.values.get(task.name, {}).get("digest") == digest(tokens):
            continue
        reader = reader or load_draft(model_folder.resolve(str(DRAFT)), tokenizer)
        started = time.monotonic()
        drafts.put(task.name, reader.read(task, tokens))
        right = drafts.values[task.name]["right"]
        print(f"{task.name}: {tokens.ids.size} tokens, right {right}, {time.monotonic() - started:.1f} s", flush=True)
    del reader
    gc.collect()


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=("draft", "target", "report"))
    parser.add_argument("--limit", type=int, default=None, help="the first so many tasks")
    options = parser.parse_args()
    tokenizer = load_tokenizer(str(TARGET), 0)
    tasks = tasks_of(tokenizer, options.limit)
    drafts = Record("spec_kv_quality_drafts.json")
    if options.stage in (None, "draft"):
        await run_draft(tokenizer, tasks, drafts)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
