"""OpenAI's own client and real processes: 32 concurrent streams of which every tenth is cut. Each answer is what gRPC
answers, under the same decision, and nothing is left of those who went."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from presift_client import AsyncClient, Generation

from .meter import complaints, weigh
from .stack import Plan, Stack
from .traffic import HEAD_TOKENS, NEW_TOKENS, prompt_of

NUMBERS, ROUTES = range(5_000_000, 5_000_008), ("full", "spec_pc", "spec_kv", "spec_kv_pc")
STREAMS, CUT, ROUNDS = 32, 3, 4
SAID = ("route", "reason", "prompt_tokens", "kept_tokens", "kv_tokens", "protected_tokens")
MODEL = "echo"


@dataclass(frozen=True)
class StreamedStack:
    """A stack of one orchestrator with both APIs, and what gRPC answered to each (number, route)."""

    stack: Stack
    client: openai.AsyncOpenAI
    expected: dict[tuple[int, str], Generation]

    async def stream(self, number: int, route: str, tokens: int = NEW_TOKENS) -> openai.AsyncStream[Any]:
        return await self.client.completions.create(
            model=MODEL,
            prompt=prompt_of(number),
            max_tokens=tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"presift": options(route)},
        )


def options(route: str) -> dict[str, Any]:
    return {
        "route": route,
        "token_ids": True,
        "protected_spans": [{"start": 0, "end": HEAD_TOKENS}],
        "sampling": {"ignore_eos": True},
        "timeout_s": 60,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streamed(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[StreamedStack]:
    flags = ("--no-calibrate", "--guard-share=0", "--http-listen=127.0.0.1:0")
    logs = tmp_path_factory.mktemp("openai")
    plan = Plan(tiny_model("tinyq"), logs, orchestrators=1, orchestrator_flags=flags, cache_timeout_s=1.0)
    async with Stack(plan) as stack, AsyncClient(stack.addresses[0]) as grpc_client:
        expected = {
            (number, route): await grpc_client.generate(
                token_ids=prompt_of(number),
                protected_spans=[(0, HEAD_TOKENS)],
                route=route,
                max_new_tokens=NEW_TOKENS,
                ignore_eos=True,
                deadline_s=60,
            )
            for number in NUMBERS
            for route in ROUTES
        }
        address = stack.members["orchestrator-0"].running.http_address
        async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
            yield StreamedStack(stack, client, expected)


async def check(streamed: StreamedStack, number: int, route: str) -> None:
    chunks = [chunk async for chunk in await streamed.stream(number, route)]
    expected, told = streamed.expected[number, route], chunks[-1].presift
    decision = {name: told["decision"][name] for name in SAID}
    assert decision == {name: getattr(expected.decision, name) for name in SAID}
    assert told["decision"].get("coverage") == pytest.approx(expected.decision.coverage)
    tokens = [token for chunk in chunks for choice in chunk.choices for token in choice.token_ids]
    assert tokens == list(expected.token_ids)
    assert chunks[-1].usage.completion_tokens == NEW_TOKENS


async def leave(streamed: StreamedStack, number: int, route: str, after: int) -> None:
    """Goes after so many chunks; 0: before the first one."""
    if after == 0:
        asking = asyncio.create_task(streamed.stream(number, route, 2_000))
        await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.wait((asking,))
        return
    stream = await streamed.stream(number, route, 2_000)  # it has not ended by then
    async for _ in stream:
        after -= 1
        if not after:
            break
    await stream.close()


async def is_idle(streamed: StreamedStack) -> None:
    """No request is under way in the orchestrator or the target."""
    async with AsyncClient(streamed.stack.addresses[0]) as client, asyncio.timeout(30):
        while any(replica.in_flight for replica in (await client.info()).replicas):
            await asyncio.sleep(0.05)


async def round_of(streamed: StreamedStack, dice: random.Random) -> None:
    leaving = set(dice.sample(range(STREAMS), CUT))
    asked = [(dice.choice(NUMBERS), dice.choice(ROUTES)) for _ in range(STREAMS)]
    callers = [
        leave(streamed, *each, after=dice.randint(0, 5)) if place in leaving else check(streamed, *each)
        for place, each in enumerate(asked)
    ]
    await asyncio.gather(*callers)
    await is_idle(streamed)


@pytest.mark.asyncio(loop_scope="module")
async def test_32_streams_of_which_every_tenth_is_cut(streamed: StreamedStack) -> None:
    dice = random.Random(6)
    await round_of(streamed, dice)  # warm
    await asyncio.sleep(2)
    before = await weigh(streamed.stack)
    for _ in range(ROUNDS):
        await round_of(streamed, dice)
    await asyncio.sleep(2)
    after = await weigh(streamed.stack)
    # Memory is weighed by the soak: here it is warm-up.
    found = [each for name in before for each in complaints(name, before[name], after[name]) if "memory" not in each]
    assert not found


@pytest.mark.asyncio(loop_scope="module")
async def test_the_target_checks_what_it_is_told(streamed: StreamedStack) -> None:
    for change, param in (({"temperature": 3}, "temperature"), ({"top_p": 2}, "top_p"), ({"stop": [""]}, "stop")):
        with pytest.raises(openai.BadRequestError) as refused:
            await streamed.client.completions.create(model=MODEL, prompt=[1, 2, 3], **change)  # type: ignore[call-overload]
        assert refused.value.param == param
