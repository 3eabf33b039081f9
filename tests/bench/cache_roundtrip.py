"""How large a stored value is, and what a hit costs against a real Valkey server. Prints JSON.

PYTHONPATH=services python tests/bench/cache_roundtrip.py [--repeats 500]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable

import numpy as np

from presift.cache.codec import decode, encode
from presift.cache.embedded import embedded_cache
from presift.cache.factory import open_store
from presift.cache.memory_store import MemoryStore
from presift.cache.store import CacheLimits, Outcome, Store
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo

CASES = ((4_096, 512), (65_536, 8_192), (131_072, 1_024))
PATIENT = CacheLimits(timeout_s=5.0, put_timeout_s=5.0)
DIGEST = hashlib.sha256(b"a prompt").hexdigest()
MODEL = ModelInfo("Qwen/Qwen2.5-Coder-0.5B-Instruct", "a1b2c3d4" * 5, "sha256:" + "9f" * 32, 32_768, 24, 2, 151_936)


def compressed(prompt_tokens: int, kept_tokens: int, pool: int) -> CompressedPrompt:
    """Kept by pooled random importance (`pool` = 1: scattered, the worst case), and the window of 32."""
    importance = np.random.default_rng(0).lognormal(0.0, 2.0, prompt_tokens)
    pooled = np.convolve(importance, np.ones(pool) / pool, "same")
    pooled[-32:] = np.inf
    kept = np.argsort(-pooled, kind="stable")[:kept_tokens]
    return CompressedPrompt(TokenMask(np.isin(np.arange(prompt_tokens), kept)), (198,), 0.93, MODEL)


def raw_bytes(value: CompressedPrompt) -> int:
    """The same without any coding: int64 indices, ids and strings."""
    draft = value.draft
    names = sum(map(len, (draft.id, draft.revision, draft.tokenizer_fingerprint)))
    return value.mask.indices.nbytes + 8 * len(value.lookahead_token_ids) + 8 + 4 * 8 + names


def timed_ms(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {"p50": round(statistics.median(ordered) * 1e3, 3), "p99": round(ordered[len(ordered) * 99 // 100] * 1e3, 3)}


def measure(call: Callable[[], object], repeats: int) -> dict[str, float]:
    samples = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return timed_ms(samples)


async def measure_async(call: Callable[[], Awaitable[object]], repeats: int) -> dict[str, float]:
    samples = []
    for _ in range(repeats):
        began = time.perf_counter()
        await call()
        samples.append(time.perf_counter() - began)
    return timed_ms(samples)


async def measure_store(store: Store, value: CompressedPrompt, repeats: int) -> dict[str, dict[str, float]]:
    put = await measure_async(lambda: store.put(DIGEST, value), repeats)
    assert await store.get(DIGEST) == value
    return {"put_ms": put, "hit_ms": await measure_async(lambda: store.get(DIGEST), repeats)}


async def measure_case(prompt_tokens: int, kept_tokens: int, url: str, repeats: int) -> dict[str, object]:
    value = compressed(prompt_tokens, kept_tokens, pool=17)
    data = encode(DIGEST, value, 1 << 20)
    redis, memory = open_store(url, PATIENT), MemoryStore(PATIENT)
    row: dict[str, object] = {
        "prompt_tokens": prompt_tokens,
        "kept_tokens": kept_tokens,
        "encoded_bytes": len(data),
        "encoded_scattered_bytes": len(encode(DIGEST, compressed(prompt_tokens, kept_tokens, pool=1), 1 << 20)),
        "bitset_bytes": prompt_tokens // 8,
        "raw_bytes": raw_bytes(value),
        "encode_ms": measure(lambda: encode(DIGEST, value, 1 << 20), repeats),
        "decode_ms": measure(lambda: decode(DIGEST, data), repeats),
        "redis": await measure_store(redis, value, repeats),
        "memory": await measure_store(memory, value, repeats),
    }
    await redis.aclose()
    return row


async def measure_burst(url: str, gets: int) -> dict[str, object]:
    """So many different hits at once, with the default limits: how many still fit the 50 ms."""
    outcomes: list[str] = []
    store = open_store(
        url, CacheLimits(rest_after_failures=1_000_000), lambda operation, outcome: outcomes.append(outcome)
    )
    await open_store(url, PATIENT).put(DIGEST, compressed(4_096, 512, pool=17))
    await store.get(DIGEST)
    outcomes.clear()
    began = time.perf_counter()
    await asyncio.gather(*(store.get(DIGEST) for _ in range(gets)))
    row: dict[str, object] = {
        "gets": gets,
        "total_ms": round((time.perf_counter() - began) * 1e3, 1),
        "hits": outcomes.count(Outcome.HIT),
    }
    await store.aclose()
    return row


async def run(url: str, repeats: int) -> dict[str, object]:
    return {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "hardware": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "repeats": repeats,
        "cases": [await measure_case(*case, url, repeats) for case in CASES],
        "bursts": [await measure_burst(url, gets) for gets in (16, 64, 256, 1_024)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    with embedded_cache() as cache:
        print(json.dumps(asyncio.run(run(cache.url, repeats)), indent=2))


if __name__ == "__main__":
    main()
