"""Time to first token and decode throughput: full, spec_kv, and spec_kv with renewal, in one engine.

A first token is that of a prompt that the engine has not seen. The draft's time is not in it: the lookahead is given.
Decode throughput is that of a batch whose prompts are in the cache; renewals are in it.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from decode_step import STEPS, step_s
from real_engine import ask, plan, prompts

from presift.core.kv_plan import KvPlan
from presift.target.sglang.engine import SglangEngine

# A rehearsal's prompts are as many times shorter.
SHORTER = 32
BATCHES, ROUNDS, RENEW_EVERY = (1, 4), 2, 12
FULL, COMPRESSED, RENEWED = SIDES = ("full", "spec_kv", "renewal")


async def measure(engine: SglangEngine, lengths: Sequence[int], rehearse: bool, report: Any) -> None:
    """Add the rows of each prompt length to the result; the check is that no decode step becomes slower by dropping
    KV, at the longest prompt."""
    lengths = [tokens // SHORTER for tokens in lengths] if rehearse else lengths
    plans = _plans(128 if rehearse else 1024)
    report.result["timings"] = []
    await _warm_up(engine, lengths[0], plans)
    for tokens in lengths:
        report.result["timings"].append(await _row(engine, tokens, plans))
        report.write()
    measured = [row["decode"][-1] for row in report.result["timings"] if "decode" in row]
    figures = {name: measured[-1][name]["tokens_per_s"] for name in (FULL, COMPRESSED)} if measured else {}
    # A small model on a CPU spends its steps elsewhere.
    report.add("decode", bool(figures) and (rehearse or figures[COMPRESSED] >= figures[FULL]), figures)


def _plans(capacity: int) -> dict[str, KvPlan | None]:
    compressed = plan(capacity, keep_full_prefix=True)
    return {FULL: None, COMPRESSED: compressed, RENEWED: plan(capacity, keep_full_prefix=True, renew_every=RENEW_EVERY)}


async def _warm_up(engine: SglangEngine, tokens: int, plans: dict[str, KvPlan | None]) -> None:
    """Kernels are compiled at their first call."""
    texts = prompts(max(BATCHES), tokens, engine.info.model.vocabulary_size, seed=99)
    for each in plans.values():
        await asyncio.gather(*(ask(engine, text, 2 * STEPS, each) for text in texts))
    await engine.flush()


async def _row(engine: SglangEngine, tokens: int, plans: dict[str, KvPlan | None]) -> dict[str, Any]:
    pool, context = engine.info.kv_pool_tokens, engine.info.model.context_tokens
    # Prompts, answers, and what scoring needs.
    needed = max(BATCHES) * (tokens + 2048)
    if tokens + 2 * STEPS > context or needed > pool:
        return {"tokens": tokens, "reason": f"needs {needed} KV tokens in a pool of {pool}, in a context of {context}"}
    first, scored, texts = await _first_tokens(engine, tokens, plans)
    decode = [{"batch": batch, **await _decode(engine, texts[-batch:], plans)} for batch in BATCHES]
    await engine.flush()
    return {"tokens": tokens, "first_token_s": first, **scored, "decode": decode}


async def _first_tokens(
    engine: SglangEngine, tokens: int, plans: dict[str, KvPlan | None]
) -> tuple[dict[str, float], dict[str, float], list[np.ndarray]]:
    """Median seconds of each side, of what they are for scoring and publishing KV (ms), and the prompts that were read,
    each by one side."""
    texts = prompts(ROUNDS * len(plans), tokens, engine.info.model.vocabulary_size, seed=tokens)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    ends = []
    for place, text in enumerate(texts):
        name = SIDES[place % len(SIDES)]
        answer = await ask(engine, text, 1, plans[name])
        seconds[name].append(answer.times_s[0] - answer.started_s)
        ends += [answer.finished] if name == COMPRESSED else []
    scored = {field: statistics.median(getattr(end, field) for end in ends) for field in ("score_ms", "publish_ms")}
    return {name: statistics.median(each) for name, each in seconds.items()}, scored, texts


async def _decode(
    engine: SglangEngine, texts: list[np.ndarray], plans: dict[str, KvPlan | None]
) -> dict[str, dict[str, float]]:
    """Tokens a second of the batch, on each side: the median over rounds, in which the sides alternate. Before the
    first, all have read the prompts and built their entries."""
    rates: dict[str, list[float]] = {name: [] for name in plans}
    found: dict[str, dict[str, float]] = {name: {"renewals": 0, "skipped": 0} for name in plans}
    for each in plans.values():
        await asyncio.gather(*(ask(engine, text, 1, each) for text in texts))
    for _ in range(ROUNDS):
        for name, each in plans.items():
            answers = await asyncio.gather(*(ask(engine, text, 2 * STEPS, each) for text in texts))
            rates[name].append(len(texts) / step_s(answers))
            ends = [answer.finished for answer in answers]
            found[name]["kv_tokens"] = ends[0].kv_tokens
            found[name]["renewals"] += sum(end.renewals for end in ends)
            found[name]["skipped"] += sum(end.renewals_skipped for end in ends)
    return {name: row | {"tokens_per_s": statistics.median(rates[name])} for name, row in found.items()}
