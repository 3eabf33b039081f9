"""KV pages of 16 and 64 tokens: the answers are those of pages of one token, and no page is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from presift.core.answer import AnswerDelta, Finished
from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import KvSelection, SpecKv
from presift.target.engine import GenerateRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")

ABORTS = 100
TOKENS = 40


@pytest.fixture(scope="session", params=[16, 64], ids="pages of {}".format)
def page(request: pytest.FixtureRequest) -> int:
    return int(request.param)


async def both(start: Any, page: int) -> tuple[Any, Any]:
    """The engines with pages of one token and with the other pages. Nothing is cached in either."""
    drivers = await start(), await start(kv_page_tokens=page)
    for driver in drivers:
        await driver.empty()
    return drivers


async def told(
    driver: Any, ids: list[int], plan: KvPlan | None = None, salt: str = "", max_new_tokens: int = TOKENS
) -> tuple[list[int], list[float], Finished]:
    """The tokens of a greedy answer, their log probabilities, and how it ended."""
    sampling = Sampling(max_new_tokens=max_new_tokens, ignore_eos=True, top_logprobs=1)
    tokens: list[int] = []
    logprobs: list[float] = []
    async with aclosing(
        driver.engine.generate(GenerateRequest(np.array(ids, dtype=np.uint32), sampling, salt, plan))
    ) as events:
        async for event in events:
            if not isinstance(event, AnswerDelta):
                return tokens, logprobs, event
            tokens += event.token_ids
            logprobs += [each.logprob for each in event.logprobs]
    raise AssertionError("the stream has no end")


def masked(ids: list[int], kept: int, capacity: int = 128, seed: int = 0) -> KvPlan:
    """A draft's mask that keeps `kept` tokens before the final one, the last 16 of them included."""
    flags = np.zeros((1, 1, len(ids)), dtype=bool)
    flags[..., np.random.default_rng(seed).permutation(len(ids) - 17)[: kept - 16]] = True
    flags[..., -17:] = True
    policy = SpecKv(capacity, window=16, selection=KvSelection.DRAFT_MASK)
    return KvPlan(policy, kv_mask=KvMask(flags))


async def test_the_engine_has_the_pages_and_its_check_passes(start: Any, page: int) -> None:
    info = (await start(kv_page_tokens=page)).engine.info
    assert (info.unsupported, info.kv_page_tokens, info.kv_pool_tokens % page) == ({}, page, 0)


async def test_with_all_kv_kept_the_answer_is_that_of_full(start: Any, plan: Any, prompt: Any, page: int) -> None:
    one, paged = await both(start, page)
    for pages in (2, 5):
        ids = prompt(pages, 64 * pages + 1)
        ordinary, likely, _ = await told(paged, ids, salt="full")
        kept, kept_likely, end = await told(paged, ids, plan(len(ids) - 1), salt="kept")
        assert (kept, end.kv_tokens, end.coverage) == (ordinary, len(ids), pytest.approx(1.0, abs=1e-5))
        assert kept_likely == pytest.approx(likely, abs=1e-4)
        assert (await told(one, ids, plan(len(ids) - 1), salt="kept"))[:2] == (kept, kept_likely)
    await paged.empty()


@pytest.mark.parametrize("keep_full_prefix", [True, False])
async def test_where_kv_is_dropped_the_answer_is_that_of_pages_of_one_token(
    start: Any, plan: Any, prompt: Any, page: int, keep_full_prefix: bool
) -> None:
    one, paged = await both(start, page)
    ids, turn = prompt(20, 333), prompt(21, 50)
    cases = [
        (ids, plan(64, keep_full_prefix=keep_full_prefix)),
        (ids, plan(128, lookahead=(), keep_full_prefix=keep_full_prefix)),
        (ids + turn, plan(64, prompt_tokens=333, keep_full_prefix=keep_full_prefix)),
        (ids, masked(ids, 64)),
    ]
    for number, (tokens, chosen) in enumerate(cases):
        *answer, made = await told(paged, tokens, chosen, salt=f"{number}{keep_full_prefix}")
        *expected, end = await told(one, tokens, chosen, salt=f"{number}{keep_full_prefix}")
        assert answer == expected
        assert (made.kv_tokens, made.coverage) == (end.kv_tokens, end.coverage)
        kept = chosen.policy.capacity if chosen.kv_mask is None else 64
        assert made.kv_tokens == kept + 1 + len(tokens) - 333
        *again, found = await told(paged, tokens, chosen, salt=f"{number}{keep_full_prefix}")
        assert (again[0], found.reused_entry, found.cached_tokens >= kept) == (expected[0], True, True)
    await paged.empty()


async def test_a_capacity_is_rounded_down_to_whole_pages(start: Any, plan: Any, prompt: Any, page: int) -> None:
    one, paged = await both(start, page)
    ids, whole = prompt(30, 300), 100 // page * page
    tokens, end = await paged.answer(ids, plan(100))
    expected, _ = await one.answer(ids, plan(whole))
    assert (tokens, end.kv_tokens, end.reused_entry) == (expected, whole + 1, False)
    for capacity in (whole, whole + 1, whole + page - 1):
        tokens, end = await paged.answer(ids, plan(capacity))
        assert (tokens, end.kv_tokens, end.reused_entry) == (expected, whole + 1, True)
    for fits in (whole, whole + 1, whole + 2):
        _, end = await paged.answer(prompt(31, fits), plan(100))
        assert end.kv_tokens == min(fits, whole + 1)
    await paged.empty()


async def test_what_is_not_whole_pages_is_refused(start: Any, plan: Any, prompt: Any, page: int) -> None:
    paged, ids = await start(kv_page_tokens=page), prompt(40, 300)
    with pytest.raises(InvalidRequest, match=rf"capacity.*whole pages of {page}"):
        await paged.answer(ids, plan(page - 1, window=4))
    for kept in (63, 65, 72):
        with pytest.raises(InvalidRequest, match=rf"kv_mask is {kept} KV pairs.*whole pages of {page}"):
            await paged.answer(ids, masked(ids, kept))
    # The capacity itself is 100, of which 64 or 96 may be kept.
    with pytest.raises(InvalidRequest, match="kv_mask"):
        await paged.answer(ids, masked(ids, 128, capacity=100))
    await paged.answer(ids, masked(ids, 64, capacity=100))
    await paged.empty()


@pytest.mark.parametrize("first", [0, 9], ids="{} on the full KV".format)
async def test_renewals_that_keep_all_kv_change_nothing(
    start: Any, renewing: Any, prompt: Any, page: int, first: int
) -> None:
    paged = await start(kv_page_tokens=page)
    for pages, every in ((2, 1), (5, 7)):
        ids = prompt(50 + pages, 64 * pages + 1)
        ordinary, _ = await paged.answer(ids, salt="full", max_new_tokens=90)
        kept, end = await paged.answer(ids, renewing(len(ids) - 1, every, first=first), max_new_tokens=90)
        assert (kept, end.kv_tokens, end.renewals_skipped) == (ordinary, len(ids), 0)
        assert end.renewals >= 70 // (every + 2)
    await paged.empty()


@pytest.mark.parametrize("first", [0, 9], ids="{} on the full KV".format)
async def test_renewed_answers_are_those_of_pages_of_one_token(
    start: Any, renewing: Any, prompt: Any, page: int, first: int
) -> None:
    one, paged = await both(start, page)
    for seed, capacity in enumerate((64, 128)):
        ids, chosen = prompt(60 + seed, 250 + 37 * seed), renewing(capacity, first=first)
        expected, end = await one.answer(ids, chosen, max_new_tokens=90)
        tokens, made = await paged.answer(ids, chosen, max_new_tokens=90)
        assert (tokens, made.kv_tokens) == (expected, capacity + 1)
        assert (made.renewals, made.renewals_skipped) == (end.renewals, 0)
        assert made.coverage == pytest.approx(end.coverage, abs=1e-4)
        assert made.renewals > 10
    await paged.empty()


async def test_a_hundred_aborts_leave_no_page_missing(
    start: Any, plan: Any, renewing: Any, prompt: Any, page: int
) -> None:
    driver, dice = await start(kv_page_tokens=page), random.Random(page)
    all_slots = await driver.empty()
    assert all_slots == driver.engine.info.kv_pool_tokens
    ended: list[int] = []

    async def one(number: int) -> None:
        seed, capacity = dice.randrange(12), dice.choice((64, 100, 128))
        ids = prompt(1000 + seed, 150 + 97 * seed)
        chosen = dice.choice(
            (
                plan(capacity, keep_full_prefix=dice.random() < 0.5),
                renewing(capacity, dice.choice((1, 2, 5))),
                renewing(capacity, dice.choice((1, 5)), first=8),
            )
        )
        try:
            async with asyncio.timeout(dice.choice((0.0, 0.01, 0.05, 0.1, 0.2, 0.4))):
                await driver.answer(ids, chosen, max_new_tokens=dice.choice((8, 300)))
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


async def test_in_a_full_pool_nobody_fails_and_no_page_is_lost(
    start: Any, plan: Any, renewing: Any, prompt: Any
) -> None:
    # Twelve requests of 493 KV tokens in a pool of 1,536: some are retracted, entries and prompts are evicted.
    driver = await start("tinyl", kv_pool_tokens=1536, kv_page_tokens=64)
    all_slots = await driver.empty()
    prompts = [prompt(4500 + i, 193) for i in range(12)]
    full = [(await driver.answer(ids, salt="full", max_new_tokens=300))[0] for ids in prompts]
    plans = [(renewing(192), renewing(192, first=8), plan(192, keep_full_prefix=False))[i % 3] for i in range(12)]
    answers = await asyncio.gather(
        *(driver.answer(ids, chosen, max_new_tokens=300) for ids, chosen in zip(prompts, plans, strict=True))
    )
    assert [tokens for tokens, _ in answers] == full
    assert sum(end.renewals for _, end in answers) > 0
    assert sum(end.renewals_skipped for _, end in answers) > 0
    assert await driver.empty() == all_slots == 1536
