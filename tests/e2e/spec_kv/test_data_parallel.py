"""Two replicas of a model in one engine answer as one does; what was read for a prompt is where its answer is made."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from presift.core.errors import TargetUnavailable
from presift.core.plan import Route
from presift.models.folder import resolve
from presift.target.sglang import processes
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine
from presift.target.sglang.processes import scheduler_ids

from ..conftest import Driver

pytestmark = pytest.mark.asyncio(loop_scope="session")

POOL_TOKENS = 2000


async def drivers(start: Any) -> tuple[Any, Any]:
    """Engines of one replica and of two."""
    one, two = [await start(kv_pool_tokens=POOL_TOKENS, data_parallel=replicas) for replicas in (1, 2)]
    return one, two


async def test_both_routes_are_served_and_all_pools_are_counted(start: Any) -> None:
    one, two = await drivers(start)
    info = two.engine.info
    assert {Route.SPEC_KV, Route.SPEC_KV_PC} <= set(info.routes)
    # A prompt must fit the pool of one replica.
    assert info.kv_pool_tokens == one.engine.info.kv_pool_tokens
    assert await two.empty() == 2 * await one.empty()


async def test_answers_are_those_of_one_replica(start: Any, plan: Any, renewing: Any, prompt: Any) -> None:
    one, two = await drivers(start)
    all_slots = await two.empty()
    ids = [prompt(100 + seed, 200 + 60 * seed) for seed in range(6)]
    # Beside others, a renewal takes effect a step sooner or later: then they are asked one after the other.
    for chosen, at_once in ((None, 6), (plan(64), 6), (renewing(64, first=8), 1)):
        expected = [(await one.answer(each, chosen, max_new_tokens=24))[0] for each in ids]
        for start_at in [*range(0, len(ids), at_once)] * 2:
            some = slice(start_at, start_at + at_once)
            answers = await asyncio.gather(*(two.answer(each, chosen, max_new_tokens=24) for each in ids[some]))
            assert [tokens for tokens, _ in answers] == expected[some]
    assert await two.empty() == all_slots


async def test_a_prompt_returns_to_the_replica_that_has_read_it(start: Any, plan: Any, prompt: Any) -> None:
    _, two = await drivers(start)
    await two.empty()
    # An odd number: taken in turn, each would come to the other replica the next time.
    ids = [prompt(200 + seed, 300) for seed in range(7)]
    # As a prompt that is read ahead.
    await asyncio.gather(*(two.answer(each, max_new_tokens=1) for each in ids))
    built = await asyncio.gather(*(two.answer(each, plan(64)) for each in ids))
    again = await asyncio.gather(*(two.answer(each, plan(64)) for each in ids))
    # All but what is computed in any case: the window and the final token.
    assert [end.cached_tokens for _, end in built] == [300 - 1 - 16] * 7
    assert [end.reused_entry for _, end in again] == [True] * 7
    # Together they hold more than the pool of one replica.
    assert (await two.idle())["evictable_slots"] > POOL_TOKENS


async def test_aborts_leave_no_slot_missing(start: Any, plan: Any, renewing: Any, prompt: Any) -> None:
    _, two = await drivers(start)
    all_slots, dice, cancelled = await two.empty(), random.Random(5), []

    async def request(number: int) -> None:
        seed, chosen = dice.randrange(6), dice.choice((None, plan(48), renewing(48)))
        try:
            async with asyncio.timeout(dice.choice((0.02, 0.1, 0.5, None))):
                await two.answer(prompt(300 + seed, 150 + 90 * seed), chosen, max_new_tokens=dice.choice((1, 30)))
        except TimeoutError:
            cancelled.append(number)

    for first in range(0, 40, 10):
        await asyncio.gather(*(request(first + number) for number in range(10)))
    assert 5 <= len(cancelled) < 40
    assert await two.empty() == all_slots


@pytest.mark.faults
async def test_a_replica_that_is_killed_ends_what_runs(
    tiny_model: Callable[[str], Path], prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The engine sets it for all of this process.
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|0")
    options = SglangOptions(
        resolve(str(tiny_model("tinyq"))), dtype="float32", kv_pool_tokens=POOL_TOKENS, threads=1, data_parallel=2
    )
    others = processes.children()
    driver = Driver(SglangEngine(options))
    try:
        await driver.engine.start()
        running = [
            asyncio.create_task(driver.answer(prompt(400 + seed, 100), max_new_tokens=1500)) for seed in range(2)
        ]
        await asyncio.sleep(1)
        replicas = scheduler_ids(processes.children() - others)
        assert len(replicas) == 2
        os.kill(replicas[1], signal.SIGKILL)
        async with asyncio.timeout(30):
            told = await asyncio.gather(*running, driver.engine.died(), return_exceptions=True)
        assert [type(each) for each in told] == [TargetUnavailable, TargetUnavailable, str]
        with pytest.raises(TargetUnavailable, match="a scheduler has ended"):
            await driver.answer(prompt(402, 100))
    finally:
        await driver.engine.stop()
    async with asyncio.timeout(30):
        while any(map(psutil.pid_exists, replicas)):
            await asyncio.sleep(0.1)
