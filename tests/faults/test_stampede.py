"""500 simultaneous identical requests at two orchestrators: the draft reads the prompt once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count

import pytest

from presift_client import AsyncClient, Generation

from .stack import Stack
from .traffic import HEAD_TOKENS, prompt_of

CALLERS, CLIENTS = 500, 10
_fresh = count(2_000_000)


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


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("round_", range(3))
async def test_500_identical_requests_cost_one_draft_pass(stack: Stack, round_: int) -> None:
    before = stack.proxies["draft-0"].calls
    answers = await at_once(stack, prompt_of(next(_fresh)))
    outcomes = Counter(answer.decision.cache for answer in answers)
    assert stack.proxies["draft-0"].calls - before == 1, outcomes
    assert {answer.decision.route for answer in answers} == {"spec_pc"}
    assert len({answer.token_ids for answer in answers}) == 1
    assert outcomes["miss"] == 1 and set(outcomes) <= {"miss", "shared", "hit"}
