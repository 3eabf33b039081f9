"""With all KV kept, route spec_kv is route full, token for token: alone, among others, in chunks and in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPTS = 20
CHUNKS = {"in chunks": 128, "in one piece": 4096}


@pytest.fixture(scope="session")
def prompts(prompt: Callable[[int, int], list[int]]) -> list[list[int]]:
    return [prompt(seed, 60 + 37 * seed) for seed in range(PROMPTS)]


@pytest.mark.parametrize("chunk_tokens", CHUNKS.values(), ids=CHUNKS)
async def test_alone(start: Any, plan: Any, prompts: list[list[int]], chunk_tokens: int) -> None:
    driver = await start(prefill_chunk_tokens=chunk_tokens)
    for ids in prompts:
        ordinary, _ = await driver.answer(ids, salt="full", max_new_tokens=16)
        kept, end = await driver.answer(ids, plan(len(ids) - 1), salt="kept", max_new_tokens=16)
        assert kept == ordinary
        assert (end.kv_tokens, end.prompt_tokens, end.coverage) == (len(ids), len(ids), pytest.approx(1.0, abs=1e-5))
    await driver.empty()


@pytest.mark.parametrize("chunk_tokens", CHUNKS.values(), ids=CHUNKS)
async def test_in_a_mixed_batch_of_eight(start: Any, plan: Any, prompts: list[list[int]], chunk_tokens: int) -> None:
    driver = await start(prefill_chunk_tokens=chunk_tokens)
    alone = [(await driver.answer(ids, salt="full", max_new_tokens=16))[0] for ids in prompts]
    for first in range(0, PROMPTS, 8):
        some = list(enumerate(prompts))[first : first + 8]
        # Half of them compressed, one of those to a quarter: what it answers must not matter to the others.
        plans = {i: plan(len(ids) - 1) for i, ids in some if i % 2} | {some[3][0]: plan(len(some[3][1]) // 4 + 17)}
        answers = await asyncio.gather(
            *(driver.answer(ids, plans.get(i), salt=f"mixed{first}", max_new_tokens=16) for i, ids in some)
        )
        for (i, _), (tokens, _) in zip(some, answers, strict=True):
            assert tokens == alone[i] or i == some[3][0]
    await driver.empty()
