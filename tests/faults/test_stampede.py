"""500 simultaneous identical requests at two orchestrators: the draft reads the prompt once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from presift_client import AsyncClient, Generation

from .stack import Plan, Stack
from .traffic import HEAD_TOKENS, prompt_of

CALLERS, CLIENTS = 500, 10
_fresh = count(2_000_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wide(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two orchestrators on one cache that remembers. They are patient with it: this machine may be busy."""
    logs = tmp_path_factory.mktemp("stampede")
    plan = Plan(tiny_model("tinyq"), logs, cache_ttl_s=600, cache_timeout_s=1.0, direct_cache=True)
    async with Stack(plan) as running:
        yield running


async def at_once(stack: Stack, token_ids: list[int]) -> list[Generation]:
    """The answers to CALLERS identical calls, spread over the orchestrators."""
    async with AsyncExitStack() as clients:
        opened = [
            await clients.enter_async_context(AsyncClient(stack.addresses[n % len(stack.addresses)]))
            for n in range(CLIENTS)
        ]
        await asyncio.gather(*(client.info() for client in opened))
        asking = [
            opened[n % CLIENTS].generate(
                token_ids=token_ids,
                protected_spans=[(0, HEAD_TOKENS)],
                route="spec_pc",
                max_new_tokens=4,
                ignore_eos=True,
                deadline_s=60,
            )
            for n in range(CALLERS)
        ]
        return await asyncio.gather(*asking)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("round_", range(2))
async def test_500_identical_requests_cost_one_draft_pass(wide: Stack, round_: int) -> None:
    before = wide.proxies["draft-0"].calls
    answers = await at_once(wide, prompt_of(next(_fresh)))
    outcomes = Counter(answer.decision.cache for answer in answers)
    assert wide.proxies["draft-0"].calls - before == 1, outcomes
    assert {answer.decision.route for answer in answers} == {"spec_pc"}
    assert len({answer.token_ids for answer in answers}) == 1
    assert outcomes["miss"] == 1 and set(outcomes) <= {"miss", "shared", "hit"}
