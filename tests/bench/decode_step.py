"""What one decode step costs at a long prompt: full, spec_kv, and spec_kv with renewal, on the real SGLang engine.

    python tests/bench/decode_step.py [--prompts 8192,16384] [--batches 1,4] [--capacity 256] [--renew-every 12]

One engine, a model of random weights with real proportions (8 layers, 16 heads, 4 KV heads of 64). Every prompt is read
once before anything is measured, and all start from cached KV, so only decoding differs; rounds alternate between them.
A step is the time per token of one answer while the whole batch decodes, renewals included: the median over rounds,
each of some 60 steps. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from real_engine import Answer, ask, machine, plan, prompts, random_folder, running

from presift.core.kv_plan import KvPlan
from presift.target.sglang.engine import SglangEngine

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 65_536,
}
STEPS = 32


def main() -> int:
    options = _parser().parse_args()
    rows = asyncio.run(_alone(options))
    print(f"{'prompt':>8}{'batch':>7}  {'':10}{'ms':>8}{'of full':>9}{'KV held':>9}  renewals, skipped")
    for row in rows:
        for name in _plans(options):
            found = row[name]
            print(f"{row['tokens']:8}{row['batch']:7}  {name:10}{found['ms']:8.1f}", end="")
            print(f"{found['ms'] / row['full']['ms']:9.2f}{found['kv_tokens']:9}  {found['renewals']}")
    print(json.dumps({"bench": "decode_step", **vars(options), **machine(), "rows": rows}))
    return 0


async def _alone(options: argparse.Namespace) -> list[dict[str, Any]]:
    keeper, folder = random_folder(**SIZES)
    pool = max(_numbers(options.batches)) * (max(_numbers(options.prompts)) + 4 * STEPS) * 5 // 4
    with keeper:
        async with running(folder, kv_pool_tokens=pool, prefill_chunk_tokens=options.chunk_tokens) as engine:
            return await measure(engine, options)


async def measure(engine: SglangEngine, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows, batches = [], _numbers(options.batches)
    for tokens in _numbers(options.prompts):
        texts = prompts(max(batches), tokens, engine.info.model.vocabulary_size)
        await _read(engine, texts, plan(options.capacity, keep_full_prefix=True))
        for batch in batches:
            found = await _routes(engine, texts[:batch], options)
            rows.append({"tokens": tokens, "batch": batch, **found})
        await engine.flush()
    return rows


async def _read(engine: SglangEngine, texts: list[np.ndarray], kv_plan: KvPlan) -> None:
    for text in texts:
        started = time.perf_counter()
        await ask(engine, text, 1)
        answer = await ask(engine, text, 1, kv_plan)
        score_ms = answer.finished.score_ms if answer.finished else 0.0
        print(
            f"read {text.size} in {time.perf_counter() - started:.1f} s, scored in {score_ms:.0f} ms", file=sys.stderr
        )


def _plans(options: argparse.Namespace) -> dict[str, KvPlan | None]:
    compressed = plan(options.capacity, keep_full_prefix=True)
    renewal = {"renew_every": options.renew_every, "renew_window": options.renew_window}
    renewed = plan(options.capacity, keep_full_prefix=True, **renewal)
    return {"full": None, "spec_kv": compressed, "renewal": renewed}


async def _routes(engine: SglangEngine, texts: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    plans = _plans(options)
    found: dict[str, Any] = {name: {"steps": [], "renewals": [0, 0]} for name in plans}
    for _ in range(options.rounds):
        for name, kv_plan in plans.items():
            answers = await asyncio.gather(*(ask(engine, text, STEPS * 2, kv_plan) for text in texts))
            found[name]["steps"].append(step_s(answers))
            ends = [answer.finished for answer in answers if answer.finished]
            found[name]["kv_tokens"] = ends[0].kv_tokens
            for place, count in enumerate((sum(e.renewals for e in ends), sum(e.renewals_skipped for e in ends))):
                found[name]["renewals"][place] += count
    for row in found.values():
        steps = row.pop("steps")
        row.update(ms=statistics.median(steps) * 1e3, best_ms=min(steps) * 1e3, worst_ms=max(steps) * 1e3)
    return found


def step_s(answers: list[Answer]) -> float:
    """Seconds a token of the first answer, while all are under way. Tokens may come several at a time."""
    begin, end = max(answer.times_s[2] for answer in answers), min(answer.times_s[-1] for answer in answers)
    within = [moment for moment in answers[0].times_s if begin <= moment <= end]
    return (within[-1] - within[0]) / (len(within) - 1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="8192,16384")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--renew-every", type=int, default=12, help="tokens between renewals")
    parser.add_argument("--renew-window", type=int, default=32, help="newest tokens that select again")
    parser.add_argument("--chunk-tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    sys.exit(main())
