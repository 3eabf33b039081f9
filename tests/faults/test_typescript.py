"""The TypeScript client and a stack of real processes: the Python client's answers, and a connection that is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from presift_client import AsyncClient

from ..contract.fakes import node
from .stack import Stack
from .traffic import prompt_of

_FIRST = 3_000_000


@pytest.fixture(scope="module")
def probe() -> Iterator[node.Prober]:
    node.needed()
    prober = node.Prober()
    yield prober
    prober.stop()


async def reached(client: AsyncClient) -> None:
    """Until it reaches its targets: the proxies stand still while tests run on another event loop than theirs."""
    async with asyncio.timeout(60):
        while not all(each.healthy for each in (await client.info()).replicas if each.role == "target"):
            await asyncio.sleep(0.05)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("route", ["full", "spec_pc"])
async def test_both_languages_get_the_same_answer(stack: Stack, probe: node.Prober, route: str) -> None:
    ids = prompt_of(_FIRST)
    for address in stack.addresses:
        async with AsyncClient(address) as client:
            await reached(client)
    async with AsyncClient(stack.addresses[0]) as client:
        expected = await client.generate(token_ids=ids, route=route, max_new_tokens=30, deadline_s=60)
    options = {"tokenIds": ids, "route": route, "maxNewTokens": 30, "deadlineMs": 60_000}
    (told,) = await probe(stack.addresses[1], "generate", options=options)
    assert told["decision"]["route"] == expected.decision.route == route
    assert told["tokenIds"] == list(expected.token_ids) and told["usage"]["completionTokens"] == 30


@pytest.mark.asyncio(loop_scope="session")
async def test_a_cut_connection_says_what_had_come(stack: Stack, probe: node.Prober) -> None:
    """The proxy before the orchestrator cuts it in the middle of an answer of seconds."""
    address, proxy = stack.addresses[0], stack.proxies["orchestrator-0"]
    options = {"tokenIds": prompt_of(_FIRST + 1), "route": "full", "maxNewTokens": 3000, "ignoreEos": True}
    probe.told = []
    asking = asyncio.create_task(probe(address, options=options))
    async with asyncio.timeout(60):
        while len(probe.told) < 3 and not asking.done():
            await asyncio.sleep(0.01)
    proxy.cut()
    told: list[Any] = await asking
    tokens = sum(len(each["tokenIds"]) for each in told if each.get("kind") == "delta")
    assert (told[-1]["error"], told[-1]["deliveredTokens"]) == ("Unavailable", tokens) and 0 < tokens < 3000
