"""SpecKV on a GPU attention backend with CUDA graphs. HAS NOT RUN ON ANY GPU YET: none was at hand.

    python tests/bench/kv_gpu_checks.py [--attention-backend flashinfer] [--dtype bfloat16]
    python tests/bench/kv_gpu_checks.py --rehearse

The shapes of Qwen2.5-1.5B without its weights (load_format "dummy"). Checked: keep-all answers like the ordinary route,
the same compressed request again reuses its entry, free slots to the last one, also after aborts, capacity of a pool of
12,000 tokens, and the time of a decode step. `--rehearse` runs all of it on a CPU, at a small size with weights that
are random: that has run, and shows that the script does. A line for each check, one JSON line; fails if any check does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import decode_step
import kv_capacity
import numpy as np
from real_engine import Answer, ask, idle, machine, plan, prompts, random_folder, running, shaped_folder

from presift.target.sglang.engine import SglangEngine

QWEN_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
}
POOL, CAPACITY, ANSWER = 12_000, 256, 32
# In bf16 two routes to the same number may round differently, and a near tie then falls the other way.
LEAST_EQUAL = 0.9

Check = Callable[[SglangEngine, argparse.Namespace], Awaitable[tuple[bool, dict[str, Any]]]]


def main() -> int:
    options = _parser().parse_args()
    if not options.rehearse and (reason := _why_no_gpu()):
        sys.exit(f"kv_gpu_checks: no GPU at hand ({reason}): nothing was checked")
    results = asyncio.run(_all(options))
    for name, (holds, figures) in results.items():
        print(f"{'ok  ' if holds else 'FAIL'} {name:18} {json.dumps(figures)}")
    print(json.dumps({"bench": "kv_gpu_checks", **vars(options), **_where(), "results": results}))
    return int(not all(holds for holds, _ in results.values()))


def _why_no_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return None


def _where() -> dict[str, Any]:
    import torch

    return {**machine(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


async def _all(options: argparse.Namespace) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Two engines, one after the other: a pool as small as the capacity check wants it, and one for long prompts."""
    results = {}
    for pool, checks in ((POOL, SMALL_POOL), (6 * options.longest, LARGE_POOL)):
        async with _engine(options, pool) as engine:
            for name, check in checks.items():
                results[name] = await check(engine, options)
                await idle(engine)
                await engine.flush()
    return results


@asynccontextmanager
async def _engine(options: argparse.Namespace, pool: int) -> AsyncIterator[SglangEngine]:
    sizes = {"kv_pool_tokens": pool, "max_running": 64, "prefill_chunk_tokens": 512}
    if options.rehearse:
        keeper, folder = random_folder(**kv_capacity.SIZES)
        device = {"device": "cpu", "dtype": "float32"}
    else:
        keeper, folder = shaped_folder(**QWEN_1_5B)
        device = {"device": "cuda", "dtype": options.dtype, "load_format": "dummy"}
        device["attention_backend"] = options.attention_backend
    with keeper:
        async with running(folder, **sizes, **device) as engine:
            yield engine


async def keep_all(engine: SglangEngine, options: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    """Alone and in batches of 8 that mix both routes, with prompts of one chunk and of several."""
    texts = [text[: 300 + 70 * place] for place, text in enumerate(_prompts(engine, 20, 1700))]
    ordinary = [await ask(engine, text, ANSWER) for text in texts]
    plans = [plan(text.size - 1) for text in texts]
    alone = [await ask(engine, text, ANSWER, each) for text, each in zip(texts, plans, strict=True)]
    half = [each if place % 2 else None for place, each in enumerate(plans)]
    mixed: list[Answer] = []
    for start in range(0, len(texts), 8):
        batch = zip(texts[start : start + 8], half[start : start + 8], strict=True)
        mixed += await asyncio.gather(*(ask(engine, text, ANSWER, each) for text, each in batch))
    equal = {"alone": _equal(ordinary, alone), "mixed": _equal(ordinary, mixed)}
    different = len({tuple(answer.tokens) for answer in ordinary})
    return min(equal.values()) >= LEAST_EQUAL, {**equal, "different_answers": different}


async def again(engine: SglangEngine, options: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    text = _prompts(engine, 1, 4000)[0]
    first, second = [await ask(engine, text, ANSWER, plan(CAPACITY)) for _ in range(2)]
    assert first.finished and second.finished
    figures = {
        "same": first.tokens == second.tokens,
        "cached": second.finished.cached_tokens,
        "kv_tokens": second.finished.kv_tokens,
        "score_ms": round(first.finished.score_ms, 1),
        "publish_ms": round(first.finished.publish_ms, 1),
    }
    reused = not first.finished.reused_entry and second.finished.reused_entry
    return first.tokens == second.tokens and reused and figures["cached"] == CAPACITY, figures


async def ledger(engine: SglangEngine, options: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    """An entry is all that is left of a request; nothing is left of it, or of aborted ones, after a flush."""
    before = (await idle(engine))["free_slots"]
    texts = _prompts(engine, 40, 3000, seed=1)
    await ask(engine, texts[0], ANSWER, plan(CAPACITY))
    after_one = (await idle(engine))["free_slots"]
    delays = np.random.default_rng(0).uniform(0.0, 1.0, len(texts))
    await asyncio.gather(*(_aborted(engine, text, delay) for text, delay in zip(texts, delays, strict=True)))
    state = await idle(engine)
    balanced = state["free_slots"] + state["evictable_slots"] == before
    await engine.flush()
    after_all = (await idle(engine))["free_slots"]
    figures = {"before": before, "after_one": after_one, "after_aborts": after_all, "balanced": balanced}
    return after_one == before - CAPACITY and balanced and after_all == before, figures


async def capacity(engine: SglangEngine, options: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    wanted = argparse.Namespace(prompt=4000, capacity=CAPACITY, answer=200, requests=32, renew_every=12)
    rows = await kv_capacity.routes(engine, wanted)
    times = rows["spec_kv"]["at_once"] / rows["full"]["at_once"]
    return times >= kv_capacity.FLOOR, {"times": times, **{name: row["at_once"] for name, row in rows.items()}}


async def step(engine: SglangEngine, options: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    """Reported; judged is only that at the longest prompt a step on compressed KV is no slower."""
    lengths = f"{options.longest // 4},{options.longest}"
    wanted = argparse.Namespace(prompts=lengths, batches="1,4", capacity=CAPACITY, rounds=3, renew_every=12)
    rows = await decode_step.measure(engine, wanted)
    figures = {
        f"{row['tokens']}x{row['batch']}": [round(row[name]["ms"], 2) for name in ("full", "spec_kv", "renewal")]
        for row in rows
    }
    full, compressed, _ = figures[f"{options.longest}x4"]
    return compressed <= full, figures


SMALL_POOL: dict[str, Check] = {"keep all": keep_all, "compressed twice": again, "ledger": ledger, "capacity": capacity}
LARGE_POOL: dict[str, Check] = {"decode step ms": step}


async def _aborted(engine: SglangEngine, text: np.ndarray, delay_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(ask(engine, text, ANSWER, plan(CAPACITY)), delay_s)


def _prompts(engine: SglangEngine, count: int, tokens: int, seed: int = 0) -> list[np.ndarray]:
    return prompts(count, tokens, engine.info.model.vocabulary_size, seed)


def _equal(one: list[Answer], other: list[Answer]) -> float:
    return sum(a.tokens == b.tokens for a, b in zip(one, other, strict=True)) / len(one)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention-backend", help="SGLang's name for it; its own choice by default")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--longest", type=int, default=16_384, help="the longest prompt of the decode step, in tokens")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, small")
    return parser


if __name__ == "__main__":
    sys.exit(main())
