"""How many requests of 4,000 tokens decode at once in one KV pool: full, spec_kv, spec_kv with renewal. Real SGLang.

    python tests/bench/kv_capacity.py [--pool 12000] [--prompt 4000] [--capacity 256] [--answer 200] [--requests 32]

All in the same engine, one after the other, on a tiny model of random weights: what fits into the pool does not depend
on the model. Two counts must agree about the most that decode at once: answers that have begun and not ended, as the
caller sees them, and what SGLang's scheduler says is running. Prints a table and one JSON line; fails below 8 times
with or without renewal. The scheduler also counts the requests that renew. A renewal needs the prompt in the pool, so
that most are skipped where the prompts do not fit together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from real_engine import Answer, ask, idle, machine, plan, prompts, random_folder, running

from presift.core.generation import EngineLoad
from presift.core.kv_plan import KvPlan
from presift.target.sglang.engine import SglangEngine

FLOOR = 8.0
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 32_768,
}


def main() -> int:
    options = _parser().parse_args()
    rows = asyncio.run(_both(options))
    print(f"{'route':10}{'at once':>8}{'scheduler':>10}{'slots':>8}{'seconds':>9}{'tokens/s':>10}  renewals, skipped")
    for name, row in rows.items():
        print(f"{name:10}{row['at_once']:8}{row['scheduler']:10}{row['used_tokens']:8}{row['seconds']:9.1f}", end="")
        print(f"{row['tokens_per_s']:10.1f}  {row['renewals']}, {row['skipped']}")
    times = min(rows[name]["at_once"] for name in ("spec_kv", "renewal")) / rows["full"]["at_once"]
    print(json.dumps({"bench": "kv_capacity", **vars(options), **machine(), "times": times, "rows": rows}))
    return int(times < FLOOR)


async def _both(options: argparse.Namespace) -> dict[str, Any]:
    keeper, folder = random_folder(**SIZES)
    sizes = {"kv_pool_tokens": options.pool, "max_running": 64, "prefill_chunk_tokens": 512}
    with keeper:
        async with running(folder, dtype="float32", **sizes) as engine:
            return await routes(engine, options)


async def routes(engine: SglangEngine, options: argparse.Namespace) -> dict[str, Any]:
    plans = {
        "full": None,
        "spec_kv": plan(options.capacity),
        "renewal": plan(options.capacity, keep_full_prefix=True, renew_every=options.renew_every),
    }
    found = {}
    for name, kv_plan in plans.items():
        found[name] = await _route(engine, options, kv_plan)
        await engine.flush()
    return found


async def _route(engine: SglangEngine, options: argparse.Namespace, kv_plan: KvPlan | None) -> dict[str, Any]:
    seen: list[EngineLoad] = []
    sampling = asyncio.create_task(_sample(engine, seen))
    texts = prompts(options.requests, options.prompt, engine.info.model.vocabulary_size)
    started = time.perf_counter()
    answers = await asyncio.gather(*(ask(engine, text, options.answer, kv_plan) for text in texts))
    seconds = time.perf_counter() - started
    sampling.cancel()
    return {
        "at_once": _at_once(answers),
        "scheduler": max(load.running for load in seen),
        "used_tokens": max(load.held_kv_tokens for load in seen),
        "renewals": sum(answer.finished.renewals for answer in answers if answer.finished),
        "skipped": sum(answer.finished.renewals_skipped for answer in answers if answer.finished),
        "seconds": seconds,
        "tokens_per_s": options.requests * options.answer / seconds,
        "state": await idle(engine),
    }


async def _sample(engine: SglangEngine, seen: list[EngineLoad]) -> None:
    while True:
        if load := engine.load():
            seen.append(load)
        await asyncio.sleep(0.02)


def _at_once(answers: list[Answer]) -> int:
    """The most answers under way at any time: each is from its first token to its last."""
    changes = [(answer.times_s[0], 1) for answer in answers] + [(answer.times_s[-1], -1) for answer in answers]
    count = most = 0
    for _, change in sorted(changes):
        count += change
        most = max(most, count)
    return most


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=12_000)
    parser.add_argument("--prompt", type=int, default=4_000)
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--answer", type=int, default=200)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--renew-every", type=int, default=12, help="tokens between renewals")
    return parser


if __name__ == "__main__":
    sys.exit(main())
