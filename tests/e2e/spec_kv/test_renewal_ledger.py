"""Renewals lose no KV slot: after answers, aborts at every stage, retraction, eviction. They never fail a request."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from presift.core.generation import Sampling
from presift.target.engine import GenerateRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")

CAPACITY = 64
# Of each of the two ways to begin.
ABORTS = 250


@pytest.mark.parametrize("first", [0, 20], ids=["compressed at once", "on the full KV first"])
async def test_what_a_renewed_request_holds(start: Any, renewing: Any, prompt: Any, first: int) -> None:
    driver = await start()
    all_slots = await driver.empty()
    ids, chosen = np.array(prompt(1, 500), dtype=np.uint32), renewing(CAPACITY, first=first)
    request = GenerateRequest(ids, Sampling(max_new_tokens=200, ignore_eos=True), "", chosen)
    assert await driver.check_held(request, all_slots, CAPACITY, after=first + 10) >= 20
    assert await driver.empty() == all_slots


@pytest.mark.parametrize("first", [0, 8], ids=["compressed at once", "on the full KV first"])
async def test_five_hundred_aborts_leave_no_slot_missing(start: Any, renewing: Any, prompt: Any, first: int) -> None:
    driver, dice = await start(), random.Random(first)
    all_slots = await driver.empty()
    ended: list[int] = []

    async def one(number: int) -> None:
        seed, every = dice.randrange(12), dice.choice((1, 2, 5))
        ids = prompt(1000 + seed, 150 + 97 * seed)
        work = driver.answer(ids, renewing(dice.choice((48, 96)), every, first=first), max_new_tokens=300)
        try:
            async with asyncio.timeout(dice.choice((0.005, 0.05, 0.1, 0.2, 0.4, 0.8))):
                await work
        except TimeoutError:
            ended.append(number)

    for begun in range(0, 4 * ABORTS, 8):
        await asyncio.gather(*(one(begun + i) for i in range(8)))
        if len(ended) >= ABORTS:
            break
    state = await driver.idle()

    assert len(ended) >= ABORTS
    assert state["free_slots"] + state["evictable_slots"] == all_slots
    assert await driver.empty() == all_slots


async def test_in_a_full_pool_renewals_are_skipped_and_nobody_fails(start: Any, renewing: Any, prompt: Any) -> None:
    driver = await start("tinyl", kv_pool_tokens=1500)
    all_slots = await driver.empty()
    prompts = [prompt(4000 + i, 300 + 40 * i) for i in range(8)]
    for first in (0, 10):
        answers = await asyncio.gather(
            *(
                driver.answer(ids, renewing(CAPACITY, first=first), salt=str(first), max_new_tokens=120)
                for ids in prompts + prompts
            )
        )
        assert [len(tokens) for tokens, _ in answers] == [120] * 16
        # Without first tokens on the full KV, all prefixes may be evicted at once.
        assert sum(end.renewals for _, end in answers) >= first
        assert sum(end.renewals_skipped for _, end in answers) > 0
    assert await driver.empty() == all_slots


async def test_a_retracted_request_is_renewed_again(start: Any, renewing: Any, prompt: Any) -> None:
    driver = await start("tinyl", kv_pool_tokens=1500)
    all_slots = await driver.empty()
    prompts = [prompt(4500 + i, 200) for i in range(12)]
    full = [(await driver.answer(ids, salt="full", max_new_tokens=300))[0] for ids in prompts]
    # Twelve times 500 KV tokens in a pool of 1,500. With all KV kept the answers are known.
    answers = await asyncio.gather(
        *(driver.answer(ids, renewing(199, first=8 * (i % 2)), max_new_tokens=300) for i, ids in enumerate(prompts))
    )
    assert [tokens for tokens, _ in answers] == full
    assert sum(end.renewals for _, end in answers) > 0
    assert await driver.empty() == all_slots


async def test_an_evicted_prefix_skips_renewals(start: Any, renewing: Any, prompt: Any) -> None:
    driver = await start("tinyl", kv_pool_tokens=1500)
    all_slots = await driver.empty()
    work = asyncio.create_task(driver.answer(prompt(5000, 600), renewing(CAPACITY, 40), max_new_tokens=400))
    number = 0
    while not work.done():
        # Each takes most of the pool, so that the prefix of the other goes.
        await driver.answer(prompt(5100 + number, 1100), salt=str(number), max_new_tokens=1)
        number += 1
    tokens, end = await work

    assert len(tokens) == 400
    assert end.renewals_skipped > 0
    assert await driver.empty() == all_slots
