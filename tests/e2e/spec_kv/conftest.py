"""Real SGLang engines over tiny random models in float32, driven with KV plans. All tests share one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import Pool, Reduction, SpecKv
from presift.models.folder import resolve
from presift.target.engine import Finished, GenerateRequest
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine

VOCABULARY = 512
POOL_TOKENS = 8192


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and find_spec("sglang") is None:
            item.add_marker(pytest.mark.skip(reason="needs SGLang"))


@dataclass
class Driver:
    """An engine, and the few things that tests do with it."""

    engine: SglangEngine

    async def answer(
        self, token_ids: list[int], plan: KvPlan | None = None, salt: str = "", **sampling: Any
    ) -> tuple[list[int], Finished]:
        """The tokens of an answer and how it ended; greedy, past EOS."""
        wanted = Sampling(**{"max_new_tokens": 8, "ignore_eos": True} | sampling)
        request = GenerateRequest(np.array(token_ids, dtype=np.uint32), wanted, salt, plan)
        tokens: list[int] = []
        async with aclosing(self.engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return tokens, event
                tokens.extend(event.token_ids)
        raise AssertionError("the stream has no end")

    async def idle(self) -> dict[str, Any]:
        """The plugin's counts once nothing runs and nothing waits: no side state may be left then."""
        async with asyncio.timeout(30):
            while self.engine.scheduler_load() != (0, 0, 0) or self.engine.running_requests:
                await asyncio.sleep(0.02)
        state = await self.engine.plugin_state()
        left = {name: state[name] for name in ("runs", "waiting", "missing", "leases", "leased_tokens")}
        assert not any(left.values()), left
        assert state["locked_slots"] == 0
        return state

    async def empty(self) -> int:
        """The number of free slots once the radix cache is empty: all of them."""
        await self.idle()
        assert await self.engine.flush()
        return int((await self.idle())["free_slots"])


@pytest.fixture(scope="session")
def prompt() -> Callable[[int, int], list[int]]:
    """(seed, length) -> token ids."""
    return lambda seed, tokens: np.random.default_rng(seed).integers(0, VOCABULARY, tokens).tolist()


@pytest.fixture(scope="session")
def plan() -> Callable[..., KvPlan]:
    """The plan of TARGET_LOOKAHEAD with `capacity` and `window` KV pairs."""

    def build(capacity: int, window: int = 16, lookahead: tuple[int, ...] = (3, 1, 4, 1, 5), **others: Any) -> KvPlan:
        return KvPlan(SpecKv(capacity=capacity, window=window), lookahead_token_ids=lookahead, **others)

    return build


@pytest.fixture(scope="session")
def policy_of() -> Callable[[dict[str, Any], int], SpecKv]:
    """(the authors' config, lookahead tokens) -> our policy."""
    pools = {"max": Pool.MAX, "mean": Pool.MEAN, "avg": Pool.MEAN, None: Pool.NONE}

    def build(config: dict[str, Any], lookahead_tokens: int) -> SpecKv:
        return SpecKv(
            capacity=config["max_capacity_prompt"],
            window=config["window_size"],
            pool=pools[config["pool_type"]],
            kernel=config["kernel_size"],
            reduction=Reduction.MAX if config["reduction_type"] == "max" else Reduction.SUM,
            lookahead_tokens=lookahead_tokens,
        )

    return build


@pytest.fixture(scope="session")
def drive() -> Callable[[SglangEngine], Driver]:
    """An engine -> its Driver, for tests that start their own."""
    return Driver


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def start(tiny_model: Callable[[str], Path]) -> AsyncIterator[Callable[..., Any]]:
    """(model, **options) -> a Driver of a started engine; the same arguments share one. All are stopped at the end."""
    running: dict[tuple[Any, ...], Driver] = {}

    async def get(name: str = "tinyq", **options: Any) -> Driver:
        key = (name, *sorted(options.items()))
        if key not in running:
            chosen = {"kv_pool_tokens": POOL_TOKENS, "prefill_chunk_tokens": 128, "threads": 1} | options
            engine = SglangEngine(SglangOptions(resolve(str(tiny_model(name))), dtype="float32", **chosen))
            running[key] = Driver(engine)
            await engine.start()
        return running[key]

    yield get
    # The last one first: the handler of failing children is the last one's.
    for driver in reversed(running.values()):
        await driver.engine.stop()
