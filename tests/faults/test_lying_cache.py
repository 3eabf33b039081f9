"""Orchestrators on a Redis that lies: no lie is believed, every answer is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from presift_client import AsyncClient

from .liar import LIES, Liar
from .scenarios import NUMBERS
from .stack import Stack
from .traffic import HEAD_TOKENS, Crowd, Oracle, Question, ask, prompt_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session", params=LIES)
async def liar(stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[Liar]:
    """In the cache's place."""
    liar, proxy = Liar(LIES[request.param]), stack.proxies["cache"]
    truth, proxy.upstream = proxy.upstream, await liar.start()
    proxy.cut()
    yield liar
    proxy.upstream = truth
    proxy.cut()
    await liar.aclose()


async def test_a_lie_is_a_miss(stack: Stack, oracle: Oracle, liar: Liar) -> None:
    """What speaks no protocol is a cache that does not answer."""
    outcome = "unavailable" if liar.lie is LIES["no protocol"] else "miss"
    async with AsyncClient(stack.addresses[0]) as client:
        for number in (0, 1, 0, 1):
            call = await ask(client, oracle, Question(number, "spec_pc", 8.0))
            assert call.is_well, call
            again = await client.generate(
                token_ids=prompt_of(number), protected_spans=[(0, HEAD_TOKENS)], route="spec_pc", max_new_tokens=1
            )
            assert (again.decision.route, again.decision.cache) == ("spec_pc", outcome)
    assert liar.asked


@pytest.mark.faults
async def test_20_callers_are_answered_right_over_lies(stack: Stack, oracle: Oracle, liar: Liar) -> None:
    async with Crowd(stack.addresses, oracle, NUMBERS).asking() as book:
        await asyncio.sleep(2.0)
    assert book.calls and not book.faults and not book.errors, (book.faults, book.errors)
    assert not book.fallbacks and liar.asked
