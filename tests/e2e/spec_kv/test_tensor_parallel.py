"""Two ranks of tensor parallelism answer as one does, lose no KV slot, and fail together.

SGLang's checker of their consensus is on: it ends the engine when the ranks' schedulers decide differently.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from presift.core.errors import PresiftError
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import Route
from presift.core.policies import KvSelection, SpecKv
from presift.models.folder import resolve
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

from ..conftest import Driver

pytestmark = pytest.mark.asyncio(loop_scope="session")

LAYERS, KV_HEADS = 4, 2
POOL_TOKENS = 2000
REQUESTS = 60
# A failure that is not noticed by all ranks would be waited for without end.
PATIENCE_S = 60

# Rank 1 alone fails: it can neither copy entries of 40 KV pairs and renewed ones of 80 to 99, nor select entries of 44,
# nor verify lookaheads of 9 tokens.
FAILING = """
import torch
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    from presift.target.sglang_plugin import attention, entry_pins
    from presift.target.sglang_plugin.kv_selector import KvSelector
    copy, add, most_likely = entry_pins._copy, KvSelector.add, attention.most_likely

    def fail_if(applies):
        if applies and torch.distributed.get_rank() == 1:
            raise MemoryError("planted")

    def failing_copy(buffer, kept, source, slots):
        fail_if(len(slots) == 40 or 80 <= len(slots) < 100)
        copy(buffer, kept, source, slots)

    def failing_add(selector, *args, **kwargs):
        fail_if(selector.kept_tokens == 44)
        add(selector, *args, **kwargs)

    def failing_most_likely(processor, states, *args):
        fail_if(len(states) == 9)
        return most_likely(processor, states, *args)

    entry_pins._copy, KvSelector.add, attention.most_likely = failing_copy, failing_add, failing_most_likely
    processes.run_scheduler(*args, **kwargs)
"""

# Rank 1 alone never renews.
DIVERGING = """
import torch
from presift.target.sglang import processes

def run_scheduler(*args, **kwargs):
    from presift.target.sglang_plugin.renewals import Renewals
    is_due = Renewals._is_due
    Renewals._is_due = lambda self, request: torch.distributed.get_rank() == 0 and is_due(self, request)
    processes.run_scheduler(*args, **kwargs)
"""


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_ENABLE_RANK_CONSENSUS_CHECKER", "1")


async def drivers(start: Any) -> tuple[Driver, Driver]:
    """Engines of one rank and of two."""
    one, two = [await start(kv_pool_tokens=POOL_TOKENS, tensor_parallel=ranks) for ranks in (1, 2)]
    return one, two


async def ledger(driver: Driver) -> int:
    """The number of free slots once the radix cache is empty, on each rank."""
    state = await driver.idle()
    assert state["ranks_agree"]
    return await driver.empty()


def masked(prompt_tokens: int, **others: Any) -> KvPlan:
    """A plan with a mask of its own for every layer and head: 32 tokens, a window of 16, and the final token."""
    kept, dice = np.zeros((LAYERS, KV_HEADS, prompt_tokens), dtype=bool), np.random.default_rng(prompt_tokens)
    for head in kept.reshape(-1, prompt_tokens):
        head[dice.permutation(prompt_tokens - 17)[:32]] = True
    kept[..., -17:] = True
    policy = SpecKv(capacity=48, window=16, selection=KvSelection.DRAFT_MASK)
    return KvPlan(policy, kv_mask=KvMask(kept), **others)


async def test_both_routes_are_served(start: Any) -> None:
    for driver in await drivers(start):
        assert {Route.SPEC_KV, Route.SPEC_KV_PC} <= set(driver.engine.info.routes)
        assert driver.engine.info.unsupported == {}


async def test_answers_are_those_of_one_rank(start: Any, plan: Any, renewing: Any, prompt: Any) -> None:
    one, two = await drivers(start)
    all_slots = await two.empty()
    for seed in range(3):
        ids = prompt(100 + seed, 300 + 130 * seed)
        full, _ = await one.answer(ids, salt="full", max_new_tokens=24)
        plans = {
            "full": None,
            "keep-all": plan(len(ids) - 1),
            "dropped": plan(64),
            "dropped again": plan(64),
            "accepted": plan(64, lookahead=tuple(full[:5])),
            "masks": masked(len(ids)),
            "renewed": renewing(64),
            "full, then renewed": renewing(64, first=8),
        }
        for name, chosen in plans.items():
            (tokens, end), (other_tokens, other_end) = [
                await driver.answer(ids, chosen, max_new_tokens=24) for driver in (one, two)
            ]
            assert other_tokens == tokens, name
            if name in {"full", "keep-all"}:
                assert tokens == full
            for field in ("kv_tokens", "reused_entry", "accepted_tokens", "renewals", "renewals_skipped"):
                assert getattr(other_end, field) == getattr(end, field), (name, field)
            assert other_end.coverage == pytest.approx(end.coverage, abs=1e-4), name
        assert (await two.answer(ids, plan(64)))[1].reused_entry
    assert await ledger(two) == all_slots


async def test_sampled_answers_are_those_of_one_rank(start: Any, plan: Any, prompt: Any) -> None:
    answers = []
    for driver in await drivers(start):
        asked = [
            driver.answer(prompt(200 + seed, 200), plan(64) if seed % 2 else None, temperature=1.0, seed=seed)
            for seed in range(6)
        ]
        answers.append([tokens for tokens, _ in await asyncio.gather(*asked)])
        await driver.empty()
    assert answers[0] == answers[1]


async def test_the_kept_kv_is_that_of_all_heads(start: Any, plan: Any, prompt: Any) -> None:
    ids = prompt(300, 400)
    given = masked(len(ids), report_kept=True)
    kept = []
    for driver in await drivers(start):
        _, end = await driver.answer(ids, plan(64, report_kept=True), salt="kept")
        kept.append(end.kv_mask.kept)
        assert kept[-1].shape == (LAYERS, KV_HEADS, len(ids))
        assert (await driver.answer(ids, given, salt="given"))[1].kv_mask == given.kv_mask
        await driver.empty()
    # Sums in another order may exchange two tokens of nearly the same importance.
    assert np.mean(kept[0] == kept[1]) > 0.99


async def test_a_soak_with_aborts_and_evictions_loses_nothing(
    start: Any, plan: Any, renewing: Any, prompt: Any
) -> None:
    one, two = await drivers(start)
    all_slots, dice = await two.empty(), random.Random(3)
    kinds = [(seed, capacity) for seed in range(6) for capacity in (None, 48, 96)]
    prompts = {seed: prompt(400 + seed, 150 + 80 * seed) for seed in range(6)}
    plans = {capacity: plan(capacity) if capacity else None for _, capacity in kinds}
    expected = {
        (seed, capacity): (await one.answer(prompts[seed], plans[capacity], salt="x", max_new_tokens=40))[0]
        for seed, capacity in kinds
    }
    right, cancelled = [], []

    async def request() -> None:
        seed, capacity = dice.choice(kinds)
        chosen = plan(capacity, keep_full_prefix=dice.random() < 0.5) if capacity else None
        if capacity is None and dice.random() < 0.5:
            # With all KV kept, an answer with renewals is that of full, whenever they are done or skipped.
            chosen = renewing(len(prompts[seed]) - 1, dice.choice((3, 10)), first=dice.choice((0, 7)))
        count, patience = dice.choice((1, 12, 40)), dice.choice((0.05, 0.3, 1.0)) if dice.random() < 0.25 else None
        try:
            async with asyncio.timeout(patience):
                tokens, _ = await two.answer(prompts[seed], chosen, salt=dice.choice("ab"), max_new_tokens=count)
        except TimeoutError:
            cancelled.append(seed)
        else:
            assert tokens == expected[seed, capacity][:count]
            right.append(seed)

    async with asyncio.timeout(300):
        for _ in range(REQUESTS // 10):
            await asyncio.gather(*(request() for _ in range(10)))
    assert len(right) + len(cancelled) == REQUESTS
    assert len(right) >= REQUESTS // 2
    assert cancelled
    assert await ledger(two) == all_slots


async def test_what_fails_on_one_rank_fails_on_both(
    tiny_model: Callable[[str], Path],
    plan: Any,
    renewing: Any,
    prompt: Any,
    run_as_scheduler: Callable[[str], None],
) -> None:
    run_as_scheduler(FAILING)
    options = SglangOptions(
        resolve(str(tiny_model("tinyq"))), dtype="float32", kv_pool_tokens=POOL_TOKENS, threads=1, tensor_parallel=2
    )
    driver, ids = Driver(SglangEngine(options)), prompt(500, 300)
    try:
        await driver.engine.start()
        assert driver.engine.info.unsupported == {}
        all_slots = await driver.empty()
        for capacity, reason in ((40, "MemoryError"), (44, "KV selection did not see every layer")):
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(PresiftError, match=reason):
                    await driver.answer(ids, plan(capacity))
        async with asyncio.timeout(PATIENCE_S):
            tokens, end = await driver.answer(ids, renewing(64), max_new_tokens=60)
        assert len(tokens) == 60
        assert end.renewals > 0 and end.renewals_skipped > 0
        full, _ = await driver.answer(ids, max_new_tokens=9)
        async with asyncio.timeout(PATIENCE_S):
            for lookahead, accepted in ((full, 0), (full[:8], 8)):
                _, end = await driver.answer(ids, plan(64, lookahead=tuple(lookahead)), max_new_tokens=12)
                assert end.accepted_tokens == accepted
        await _fail_among_others(driver, plan, prompt)
        assert await ledger(driver) == all_slots
    finally:
        await driver.engine.stop()


async def _fail_among_others(driver: Driver, plan: Any, prompt: Any) -> None:
    """Requests that fail on one rank, beside others that are answered or aborted."""
    prompts = [prompt(510 + seed, 200 + 60 * seed) for seed in range(3)]
    expected = [(await driver.answer(ids, plan(64), max_new_tokens=12))[0] for ids in prompts]

    async def request(number: int) -> None:
        seed, salt = number % 3, f"salt {number % 5}"
        if number % 4 == 0:
            with pytest.raises(PresiftError, match="MemoryError"):
                await driver.answer(prompts[seed], plan(40), salt=salt)
        elif number % 4 == 1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05 * (number % 7)):
                    await driver.answer(prompts[seed], plan(64), salt=salt, max_new_tokens=200)
        else:
            assert (await driver.answer(prompts[seed], plan(64), salt=salt, max_new_tokens=12))[0] == expected[seed]

    async with asyncio.timeout(4 * PATIENCE_S):
        await asyncio.gather(*(request(number) for number in range(24)))


async def test_ranks_that_part_are_noticed(
    tiny_model: Callable[[str], Path], renewing: Any, prompt: Any, run_as_scheduler: Callable[[str], None]
) -> None:
    run_as_scheduler(DIVERGING)
    options = SglangOptions(
        resolve(str(tiny_model("tinyq"))), dtype="float32", kv_pool_tokens=POOL_TOKENS, threads=1, tensor_parallel=2
    )
    driver = Driver(SglangEngine(options))
    try:
        await driver.engine.start()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(PresiftError):
                await driver.answer(prompt(520, 300), renewing(64), max_new_tokens=60)
    finally:
        await driver.engine.stop()
