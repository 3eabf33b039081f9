"""Every KV slot is accounted for, by the allocator: after answers, aborts at every stage, flushes and pressure."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from presift.core.answer import Finished
from presift.core.errors import PromptTooLong
from presift.core.generation import Sampling
from presift.target.engine import GenerateRequest
from presift.target.sglang.messages import to_sglang
from presift.target.sglang.parsers import NO_PARSERS, Prepared

pytestmark = pytest.mark.asyncio(loop_scope="session")

CAPACITY = 64
ABORTS = 200


async def test_a_running_request_holds_its_entry_and_what_it_generates(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start()
    all_slots = await driver.empty()
    ids, chosen = np.array(prompt(1, 500), dtype=np.uint32), plan(CAPACITY, keep_full_prefix=False)
    request = GenerateRequest(ids, Sampling(max_new_tokens=120, ignore_eos=True), "", chosen)
    assert await driver.check_held(request, all_slots, CAPACITY) >= 10
    await driver.idle()


async def test_without_the_full_prefix_only_the_entry_stays(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start()
    all_slots = await driver.empty()
    for count in range(1, 6):
        await driver.answer(prompt(10 + count, 300 + 100 * count), plan(CAPACITY, keep_full_prefix=False))
        state = await driver.idle()
        assert state["free_slots"] == all_slots - count * CAPACITY
        assert state["evictable_slots"] == count * CAPACITY
    assert await driver.empty() == all_slots


async def test_with_the_full_prefix_the_prompt_stays_too_and_the_lookahead_does_not(
    start: Any, plan: Any, prompt: Any
) -> None:
    driver = await start()
    all_slots = await driver.empty()
    await driver.answer(prompt(20, 300), plan(CAPACITY), max_new_tokens=1)
    state = await driver.idle()

    assert all_slots - state["free_slots"] == state["evictable_slots"]
    assert state["evictable_slots"] in (300 + CAPACITY + 1, 300 + CAPACITY + 2)
    assert await driver.empty() == all_slots


async def test_two_hundred_aborts_leave_no_slot_missing(start: Any, plan: Any, prompt: Any) -> None:
    driver, dice = await start(), random.Random(0)
    all_slots = await driver.empty()

    async def one(number: int) -> None:
        seed, capacity = dice.randrange(12), dice.choice((48, 64, 96))
        ids = prompt(1000 + seed, 150 + 97 * seed)
        work = driver.answer(ids, plan(capacity, keep_full_prefix=False), max_new_tokens=dice.choice((1, 8, 300)))
        try:
            async with asyncio.timeout(dice.choice((0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4))):
                await work
        except TimeoutError:
            ended.append(number)

    ended: list[int] = []
    for first in range(0, 4 * ABORTS, 8):
        await asyncio.gather(*(one(first + i) for i in range(8)))
        if len(ended) >= ABORTS:
            break
    state = await driver.idle()

    assert len(ended) >= ABORTS
    # Whatever is not free is an entry that was made, and nothing else.
    assert state["free_slots"] + state["evictable_slots"] == all_slots
    assert state["evictable_slots"] <= 12 * (48 + 64 + 96)
    assert await driver.empty() == all_slots


async def test_aborting_all_at_once_while_many_wait(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start()
    all_slots = await driver.empty()
    tasks = [
        asyncio.create_task(driver.answer(prompt(2000 + i % 5, 900), plan(CAPACITY), max_new_tokens=200))
        for i in range(24)
    ]
    await asyncio.sleep(0.3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await driver.idle()
    assert await driver.empty() == all_slots


async def test_one_of_two_that_wait_for_an_entry_goes(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(3000, 3000)
    expected, _ = await driver.answer(ids, plan(CAPACITY), salt="alone")
    await driver.empty()
    first, second = (asyncio.create_task(driver.answer(ids, plan(CAPACITY))) for _ in range(2))
    async with asyncio.timeout(30):
        while (await driver.engine.plugin_state())["waiting"] < 2:
            await asyncio.sleep(0)
    first.cancel()
    tokens, end = await second

    assert tokens == expected
    assert isinstance(end, Finished)
    await driver.empty()


async def test_a_full_pool_makes_requests_wait_and_nobody_fails(start: Any, plan: Any, prompt: Any) -> None:
    # Retraction, eviction of entries and of prompts, leases: 1,500 slots for requests that want 8,000 together.
    driver = await start("tinyl", kv_pool_tokens=1500)
    all_slots = await driver.empty()
    prompts = [prompt(4000 + i, 300 + 40 * i) for i in range(8)]
    alone = [(await driver.answer(ids, plan(CAPACITY), salt="a", max_new_tokens=120))[0] for ids in prompts]
    await driver.empty()
    for keep in (True, False):
        chosen = plan(CAPACITY, keep_full_prefix=keep)
        answers = await asyncio.gather(
            *(driver.answer(ids, chosen, salt=str(keep), max_new_tokens=120) for ids in prompts + prompts)
        )
        assert [tokens for tokens, _ in answers] == alone + alone
    assert await driver.empty() == all_slots


async def test_what_is_retracted_goes_on_where_it_was(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start("tinyl", kv_pool_tokens=1500)
    all_slots = await driver.empty()
    prompts, chosen = [prompt(4500 + i, 200) for i in range(12)], plan(CAPACITY, keep_full_prefix=False)
    # From 0.5.23 on SGLang reserves all new tokens of a request that ignores EOS, so that none is retracted.
    sampling: dict[str, Any] = {"max_new_tokens": 300, "ignore_eos": False}
    alone: list[list[int]] = []
    for some in (prompts[:4], prompts[4:8], prompts[8:]):  # at most 4 * 364 KV tokens: no retraction
        answers = await asyncio.gather(*(driver.answer(ids, chosen, salt="a", **sampling) for ids in some))
        alone += [tokens for tokens, _ in answers]
    await driver.empty()

    async def answer(ids: list[int]) -> tuple[list[int], int]:
        request = GenerateRequest(np.array(ids, dtype=np.uint32), Sampling(**sampling), "b", chosen)
        sent = to_sglang(request, NO_PARSERS, Prepared())
        messages = [message async for message in driver.engine._manager.generate_request(sent)]
        tokens = [token for message in messages for token in message["output_ids"]]
        return tokens, messages[-1]["meta_info"]["num_retractions"]

    answers = await asyncio.gather(*(answer(ids) for ids in prompts))
    # Twelve times 364 KV tokens in a pool of 1,500: some had to be retracted.
    assert sum(retractions for _, retractions in answers) > 0
    assert [tokens for tokens, _ in answers] == alone
    assert await driver.empty() == all_slots


async def test_what_can_never_fit_the_pool_is_refused_at_once(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start("tinyl", kv_pool_tokens=1500)
    # Prompt, lookahead, entry and rounding: exactly what the pool has, which SGLang would never admit.
    longest = 1500 - 5 - CAPACITY - 3
    with pytest.raises(PromptTooLong, match="KV slots"):
        await driver.answer(prompt(5000, longest), plan(CAPACITY), max_new_tokens=2)
    await driver.answer(prompt(5001, longest - 1), plan(CAPACITY), max_new_tokens=2)
    await driver.empty()


async def test_a_flush_between_answers_loses_nothing(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start("tinyl", kv_pool_tokens=1500)
    expected, _ = await driver.answer(prompt(6000, 400), plan(CAPACITY))
    for _ in range(3):
        await driver.empty()
        tokens, end = await driver.answer(prompt(6000, 400), plan(CAPACITY))
        assert (tokens, end.reused_entry) == (expected, False)
    await driver.empty()


@pytest.mark.faults
async def test_a_thousand_mixed_requests_under_pressure(start: Any, plan: Any, renewing: Any, prompt: Any) -> None:
    driver, dice = await start("tinyl", kv_pool_tokens=1500), random.Random(1)
    all_slots = await driver.empty()
    kinds = [(seed, capacity) for seed in range(10) for capacity in (None, 40, 96)]
    plans = {capacity: plan(capacity) if capacity else None for _, capacity in kinds}
    prompts = {seed: prompt(7000 + seed, 100 + 60 * seed) for seed in range(10)}
    expected = {
        (seed, capacity): (await driver.answer(prompts[seed], plans[capacity], salt="x", max_new_tokens=60))[0]
        for seed, capacity in kinds
    }
    right, cancelled = [], []

    def chosen(seed: int, capacity: int | None) -> Any:
        if capacity:
            return plan(capacity, keep_full_prefix=dice.random() < 0.5)
        # With all KV kept, an answer with renewals is that of full, whenever they are done or skipped.
        renewed = renewing(len(prompts[seed]) - 1, dice.choice((3, 10)), first=dice.choice((0, 7)))
        return dice.choice((None, renewed))

    async def one() -> None:
        seed, capacity = dice.choice(kinds)
        each, count = chosen(seed, capacity), dice.choice((1, 12, 60))
        try:
            async with asyncio.timeout(0.3 if dice.random() < 0.1 else None):
                tokens, _ = await driver.answer(prompts[seed], each, salt=dice.choice(("", "b")), max_new_tokens=count)
        except TimeoutError:
            cancelled.append(seed)
        else:
            assert tokens == expected[seed, capacity][:count]
            right.append(seed)

    for _ in range(64):
        await asyncio.gather(*(one() for _ in range(16)))
        if dice.random() < 0.2:
            await driver.empty()

    assert len(right) + len(cancelled) == 1024
    assert len(right) >= 900
    assert await driver.empty() == all_slots
