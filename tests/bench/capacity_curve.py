"""Coverage and accuracy over capacities, 128 to 2,048, on the demo pair: what the default capacities are chosen by.

    python tests/bench/capacity_curve.py [draft | cross | target | report] [--limit N] [--plot FILE]

The questions of `retrieval_tasks`. `draft` reads them with the 0.5B, `cross` with SmolLM2-135M, whose vocabulary is
another; `target` asks the 1.5B in SGLang by spec_pc and spec_kv at every capacity, with either draft. Answers that
`spec_kv_quality` has already (full, and C 256 and 512 with the 0.5B) are taken from there. Every answer is written to
`results/` as it comes; a rerun goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from capacity_table import plot, table
from retrieval_drafts import CAPACITIES as BEFORE
from retrieval_drafts import LOOKAHEAD_TOKENS, digest, load_draft, mask_of
from retrieval_tasks import Task
from spec_kv_methods import full
from spec_kv_quality import MODELS, TARGET, Record, ask, tasks_of

from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.models.folder import resolve
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.prompt.loader import load_tokenizer
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.target.engine import GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

CAPACITIES = (128, 256, 512, 1024, 2048)
CROSS_CAPACITIES = (256, 512)
_SAMPLING = Sampling(max_new_tokens=16)


async def run_drafts(tokenizer: PromptTokenizer, tasks: list[Task], drafts: Record, load: Any) -> None:
    """Reads every prompt that is not in the file yet."""
    reader = None
    for task in tasks:
        tokens = await tokenizer.tokenize(task.chat)
        if drafts.values.get(task.name, {}).get("digest") == digest(tokens):
            continue
        reader = reader or load()
        started = time.monotonic()
        drafts.put(task.name, reader.read(task, tokens))
        print(f"{task.name}: {tokens.ids.size} tokens, {time.monotonic() - started:.1f} s", flush=True)


def requests(tokens: TokenizedPrompt, drafts: dict[str, dict[str, Any]]) -> dict[str, GenerateRequest]:
    """By method and capacity: what is not answered yet. Capacities that drop nothing, or next to nothing, are left."""
    found = {}
    for prefix, record in drafts.items():
        for capacity in CROSS_CAPACITIES if prefix else CAPACITIES:
            if capacity > 0.8 * tokens.ids.size or (not prefix and capacity in BEFORE):
                continue
            if f"spec_pc {capacity}" in record["masks"]:
                kept = mask_of(record, f"spec_pc {capacity}")
                found[f"{prefix}spec_pc {capacity}"] = GenerateRequest(tokens.ids[kept], _SAMPLING)
            policy = SpecKv(capacity=capacity, lookahead_tokens=LOOKAHEAD_TOKENS)
            plan = KvPlan(policy, tokens.protected, tuple(record["lookahead"]))
            found[f"{prefix}spec_kv {capacity}"] = GenerateRequest(tokens.ids, _SAMPLING, kv_plan=plan)
    return found


async def run_target(tokenizer: PromptTokenizer, tasks: list[Task], drafts: dict[str, Record], answers: Record) -> None:
    engine = SglangEngine(SglangOptions(resolve(str(TARGET)), kv_pool_tokens=40_000, prefill_chunk_tokens=512))
    try:
        await engine.start()
        for task in tasks:
            records = {prefix: each.values[task.name] for prefix, each in drafts.items() if task.name in each.values}
            await _answer(engine, tokenizer, task, records, answers)
    finally:
        await engine.stop()


async def _answer(engine: SglangEngine, tokenizer: PromptTokenizer, task: Task, records: Any, answers: Record) -> None:
    tokens, started = await tokenizer.tokenize(task.chat), time.monotonic()
    done = answers.values.get(task.name, {"answers": {}})["answers"]
    todo = {name: each for name, each in requests(tokens, records).items() if name not in done}
    if not todo:
        return
    if any("spec_kv" in name for name in todo):  # its KV is what they choose from
        await ask(engine, tokenizer, task, full(tokens))
    found = await asyncio.gather(*(ask(engine, tokenizer, task, each) for each in todo.values()))
    row = {"kind": task.kind, "prompt_tokens": int(tokens.ids.size), "answer": task.answer}
    answers.put(task.name, row | {"answers": done | dict(zip(todo, found, strict=True))})
    marks = "".join("x" if each["right"] else "." for each in found)
    print(f"{task.name}: {row['prompt_tokens']} tokens, {marks}, {time.monotonic() - started:.1f} s", flush=True)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=("draft", "cross", "target", "report"))
    parser.add_argument("--limit", type=int, default=None, help="the first so many tasks")
    parser.add_argument("--plot", default=None, help="write the curves to this SVG or PNG")
    options = parser.parse_args()
    tokenizer = load_tokenizer(str(TARGET), 0)
    tasks = tasks_of(tokenizer, options.limit)
    drafts = {"": Record("capacity_curve_drafts.json"), "cross ": Record("capacity_curve_cross.json")}
    if options.stage in (None, "draft"):
        folder = resolve(str(MODELS / "qwen2.5-coder-0.5b-instruct"))
        await run_drafts(tokenizer, tasks, drafts[""], lambda: load_draft(folder, tokenizer, CAPACITIES))
    if options.stage in (None, "cross"):
        folder = resolve(str(MODELS / "smollm2-135m-instruct"))
        await run_drafts(tokenizer, tasks, drafts["cross "], lambda: load_draft(folder, tokenizer, CAPACITIES))
    answers = Record("capacity_curve.json")
    if options.stage in (None, "target"):
        await run_target(tokenizer, tasks, drafts, answers)
    before = Record("spec_kv_quality.json").values
    coverages = {prefix: record.values for prefix, record in drafts.items()}
    print(table(answers.values, before, coverages))
    if options.plot:
        plot(answers.values, before, coverages, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
