"""Time to the first token where several prompts come at once: full against spec_kv, at the target. Real SGLang engine.

    python tests/bench/first_token_load.py [--requests 6,12] [--prompt 2000] [--answer 64] [--rounds 3] [--model DIR]

One engine; every round has other prompts, rounds alternate. `first_full` generates its first tokens on the full KV and
selects afterwards. `lookahead` scores with a draft's tokens first, which are there at once here: what waiting for the
draft costs comes on top. Prints a table and one JSON line; fails if `first_full` takes 1.1 times as long as full.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from contextlib import nullcontext
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from decode_step import SIZES
from real_engine import ask, idle, machine, plan, prompts, random_folder, running

from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.models.folder import resolve
from presift.target.sglang.engine import SglangEngine

LIMIT = 1.1
FIRST_FULL = 16


def main() -> int:
    options = _parser().parse_args()
    rows = asyncio.run(_all(options))
    print(f"{'requests':>8} {'':11}{'mean TTFT ms':>13}{'of full':>9}{'makespan s':>12}  renewals, skipped")
    for count, found in rows.items():
        for name, row in found.items():
            share = row["ttft_ms"] / found["full"]["ttft_ms"]
            print(f"{count:8} {name:11}{row['ttft_ms']:13.0f}{share:9.2f}{row['makespan_s']:12.2f}", end="")
            print(f"  {row['renewals']}, {row['skipped']}")
    print(json.dumps({"bench": "first_token_load", **vars(options), **machine(), "rows": rows}))
    return int(any(found["first_full"]["ttft_ms"] > LIMIT * found["full"]["ttft_ms"] for found in rows.values()))


async def _all(options: argparse.Namespace) -> dict[int, dict[str, Any]]:
    counts = [int(number) for number in options.requests.split(",")]
    pool = max(counts) * (options.prompt + options.answer + options.capacity) * 2
    keeper, folder = (nullcontext(), resolve(options.model)) if options.model else random_folder(**SIZES)
    with keeper:
        async with running(folder, kv_pool_tokens=pool, max_running=64) as engine:
            return {count: await _routes(engine, options, count) for count in counts}


async def _routes(engine: SglangEngine, options: argparse.Namespace, count: int) -> dict[str, Any]:
    policy = SpecKv(capacity=options.capacity, renew_every=options.renew_every, first_full_tokens=FIRST_FULL)
    plans = {
        "full": None,
        "first_full": KvPlan(policy),
        "lookahead": plan(options.capacity, keep_full_prefix=True, renew_every=options.renew_every),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in plans}
    for number in range(options.rounds):
        for name, kv_plan in plans.items():
            found[name].append(await _round(engine, options, count, number, kv_plan))
            await idle(engine)
            await engine.flush()
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


async def _round(
    engine: SglangEngine, options: argparse.Namespace, count: int, number: int, kv_plan: KvPlan | None
) -> dict[str, float]:
    texts = prompts(count, options.prompt, engine.info.model.vocabulary_size, seed=number)
    answers = await asyncio.gather(*(ask(engine, text, options.answer, kv_plan) for text in texts))
    started = min(answer.started_s for answer in answers)
    return {
        "ttft_ms": statistics.mean(answer.times_s[0] - answer.started_s for answer in answers) * 1e3,
        "makespan_s": max(answer.times_s[-1] for answer in answers) - started,
        "renewals": sum(answer.finished.renewals for answer in answers if answer.finished),
        "skipped": sum(answer.finished.renewals_skipped for answer in answers if answer.finished),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", default="6,12")
    parser.add_argument("--prompt", type=int, default=2_000)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--capacity", type=int, default=512)
    parser.add_argument("--renew-every", type=int, default=12, help="tokens between renewals")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of a model; default: random weights, as in decode_step.py")
    return parser


if __name__ == "__main__":
    sys.exit(main())
