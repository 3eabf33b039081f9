"""Tenant A, in a process of its own: one scenario of noise, which runs between the lines "go" and "stop" on stdin.

`python -m noise SCENARIO GRPC_ADDRESS HTTP_ADDRESS KEY`; the answer to each line, also to "tell", is one line: the
outcomes of all calls so far as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import grpc
import httpx

from presift.core.limits import MAX_PROMPT_CHARACTERS, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from presift.orchestrator.domain.limits import MAX_PARTS
from presift.rpc.status import code_and_reason, error_of
from presift.v1 import orchestrator_pb2, target_pb2

Prompt, GenerateRequest = orchestrator_pb2.Prompt, orchestrator_pb2.GenerateRequest

GENERATE, EXPLAIN = (f"/presift.v1.OrchestratorService/{name}" for name in ("Generate", "Explain"))
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TIMEOUT_S, _STOP_S = 120.0, 5.0
# The lowest priority: what this process takes from tenant B shall be presift's work, and not its own.
_NICE = 19
# Token ids that the draft and the target have.
_IDS = range(1, 256)
# The calls that the orchestrator runs at once, so that a tenant can have as many.
MAX_CALLS = 512
# A quota that a scenario does not reach.
PLENTY = 20_000_000
EXPLAINED = "explained tokens"


@dataclass
class Site:
    """The orchestrator's addresses, tenant A's key, and what came of its calls."""

    grpc: str
    http: str
    key: str
    outcomes: Counter[str] = field(default_factory=Counter)
    draw: random.Random = field(default_factory=random.Random)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),)

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return grpc.aio.insecure_channel(self.grpc, options)

    def web(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        return httpx.AsyncClient(base_url=f"http://{self.http}", headers=headers, timeout=TIMEOUT_S)

    def fresh(self, tokens: int) -> list[int]:
        """A prompt that nobody has sent before."""
        return self.draw.choices(_IDS, k=tokens)

    async def call(self, channel: grpc.aio.Channel, method: str, raw: bytes) -> bool:
        """Make a call over gRPC and read all of it. Returns whether it was answered."""
        call = channel.unary_stream(method)(raw, metadata=self.metadata, timeout=TIMEOUT_S)
        return await self.read(call)

    async def read(self, call: Any, events: int | None = None) -> bool:
        """Read so many events of a call, or all. Returns whether it was answered."""
        try:
            async for _ in call:
                events = None if events is None else events - 1
                if events == 0:
                    break
        except grpc.aio.AioRpcError as failure:
            error = error_of(failure)
            self.outcomes[failure.code().name if error is None else code_and_reason(error)[1]] += 1
            return False
        self.outcomes["answered"] += 1
        return True

    async def post(self, web: httpx.AsyncClient, path: str, content: bytes, **headers: str) -> bool:
        """Make a call over HTTP. Returns whether it was answered."""
        try:
            answer = await web.post(path, content=content, headers=headers)
        except httpx.HTTPError:
            self.outcomes["connection lost"] += 1
            return False
        if answer.status_code == httpx.codes.OK:
            self.outcomes["answered"] += 1
            return True
        error = answer.json()["error"]
        self.outcomes[error.get("presift", {}).get("reason", error["code"])] += 1
        return False

    async def upload(self, path: str, length: int, pieces: AsyncIterator[bytes]) -> None:
        """Send a body of `length` bytes in pieces of one's own, and wait for the answer's status."""
        host, _, port = self.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nhost: {self.http}\r\nauthorization: Bearer {self.key}\r\n"
        arrived = asyncio.create_task(reader.readline())
        try:
            writer.write(f"{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n".encode())
            async for piece in pieces:
                if arrived.done():
                    break
                writer.write(piece)
                await writer.drain()
            status = (await arrived).split()[1:2]
            self.outcomes[f"HTTP {status[0].decode()}" if status else "connection lost"] += 1
        except OSError:
            self.outcomes["connection lost"] += 1
        finally:
            arrived.cancel()
            writer.close()


async def forever(callers: int, once: Callable[[int], Awaitable[Any]]) -> None:
    """So many callers at once, each of which does `once` (with its number) again and again."""

    async def caller(number: int) -> None:
        while True:
            await once(number)

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(number))


def request(prompt: Prompt, *, route: str = "ROUTE_FULL", max_new_tokens: int = 1, **sampling: Any) -> bytes:
    wanted = target_pb2.Sampling(max_new_tokens=max_new_tokens, **sampling)
    return GenerateRequest(prompt=prompt, route=route, sampling=wanted).SerializeToString()


def tokens(ids: list[int]) -> Prompt:
    return Prompt(token_ids=orchestrator_pb2.TokenIds(ids=ids))


def as_json(**body: Any) -> bytes:
    return json.dumps({"max_tokens": 1, "presift": {"route": "full"}} | body).encode()


async def by_both(site: Site, callers: int, raw: bytes, path: str, content: bytes) -> None:
    """The same over both APIs: every other caller over HTTP."""
    async with site.channel() as channel, site.web() as web:
        await forever(
            callers,
            lambda number: site.call(channel, GENERATE, raw) if number % 2 == 0 else site.post(web, path, content),
        )


async def largest_texts(site: Site) -> None:
    text = "a" * MAX_PROMPT_CHARACTERS
    await by_both(site, 2, request(Prompt(text=text)), COMPLETIONS, as_json(prompt=text))


async def most_parts(site: Site) -> None:
    """None is marked, and all are in the last message."""
    parts = [orchestrator_pb2.TextPart(text="a")] * MAX_PARTS
    chat = orchestrator_pb2.Chat(messages=[orchestrator_pb2.Message(role="user", parts=parts)])
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}] * MAX_PARTS}]
    await by_both(site, 2, request(Prompt(chat=chat)), CHAT, as_json(messages=messages))


async def stop_strings(site: Site) -> None:
    """The answer may always be the beginning of each of them."""
    stop = ["a" * (MAX_STOP_CHARACTERS - 1) + "b"] * MAX_STOP_STRINGS
    raw = request(Prompt(text="a" * 1024), max_new_tokens=2000, stop=stop)
    await by_both(site, 5, raw, COMPLETIONS, as_json(prompt="a" * 1024, max_tokens=2000, stop=stop))


async def header_only(site: Site) -> None:
    """More calls than the orchestrator runs at all, whose messages never come, over six connections and over HTTP."""

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with AsyncExitStack() as opened:
        channels = [await opened.enter_async_context(site.channel()) for _ in range(6)]

        async def once(number: int) -> None:
            if number % 12 == 0:
                await site.upload(COMPLETIONS, 100, silence())
            else:
                call = channels[number % 6].stream_stream(GENERATE)(silence(), metadata=site.metadata)
                await site.read(call)
            await asyncio.sleep(2.0)

        await forever(MAX_CALLS + 88, once)


async def slow_bodies(site: Site) -> None:
    """Half of them large and without their end, half of them byte by byte."""

    async def dripping(piece: bytes, pause_s: float) -> AsyncIterator[bytes]:
        while True:
            yield piece
            await asyncio.sleep(pause_s)

    async def once(number: int) -> None:
        large = number % 2 == 0
        pieces = dripping(b" " * 2**18, 0.05) if large else dripping(b" ", 0.01)
        await site.upload(COMPLETIONS, 2**25, pieces)
        await asyncio.sleep(0.1)

    await forever(32, once)


async def slow_readers(site: Site) -> None:
    """Long answers with many log probabilities, of which the first events are read and no more."""
    raw = request(tokens([*_IDS]), max_new_tokens=20_000, top_logprobs=20)
    content = as_json(
        messages=[{"role": "user", "content": "a" * 99}], max_tokens=20_000, stream=True, logprobs=True, top_logprobs=20
    )

    async def all_of(content: bytes) -> AsyncIterator[bytes]:
        yield content
        await asyncio.Event().wait()

    async with site.channel() as channel:

        async def once(number: int) -> None:
            if number % 2:
                await site.upload(CHAT, len(content), all_of(content))
            else:
                await site.read(channel.unary_stream(GENERATE)(raw, metadata=site.metadata), events=3)
                await asyncio.Event().wait()

        await forever(16, once)


async def explain(site: Site) -> None:
    """Prompts that nobody has explained before, with a span for every token."""

    async def once(number: int) -> None:
        ids = site.fresh(1500)
        if number % 2 == 0:
            wanted = orchestrator_pb2.ExplainRequest(prompt=tokens(ids), route="ROUTE_SPEC_PC", span_per_token=True)
            answered = await site.call(channel, EXPLAIN, wanted.SerializeToString())
        else:
            options = {"route": "spec_pc", "explain": {"span_per_token": True}}
            answered = await site.post(web, COMPLETIONS, as_json(prompt=ids, presift=options))
        site.outcomes[EXPLAINED] += len(ids) * answered

    async with site.channel() as channel, site.web() as web:
        await forever(4, once)


async def over_quota(site: Site) -> None:
    """The first prompt uses up most of the tenant's minute."""
    ids = [*_IDS] * 3
    await by_both(site, 8, request(tokens(ids)), COMPLETIONS, as_json(prompt=ids))


async def refused(site: Site) -> None:
    """Every kind of request that is refused: values, bytes, names, keys."""
    unknown = {"authorization": "Bearer psk_unknown"}
    bodies = (
        (as_json(prompt="a", temperature=9), {}),
        (as_json(prompt="a", model="none"), {}),
        (b"{", {}),
        (b"{}", unknown),
    )
    messages = (request(tokens([1]), temperature=9), b"\xff" * 99, request(Prompt()), request(tokens([2**31])))
    kinds = cycle(zip(bodies, messages, strict=True))

    async def once(number: int) -> None:
        (content, headers), raw = next(kinds)
        await (site.call(channel, GENERATE, raw) if number % 2 else site.post(web, COMPLETIONS, content, **headers))

    async with site.channel() as channel, site.web() as web:
        await forever(8, once)


async def new_prompts(site: Site) -> None:
    """64 long prompts at a time that the draft must score."""

    async def once(number: int) -> None:
        await site.call(channel, GENERATE, request(tokens(site.fresh(2000)), route="ROUTE_SPEC_PC"))

    async with site.channel() as channel:
        await forever(64, once)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What tenant A does for as long as it may. `shows` is an outcome that it has when it does what it should."""

    name: str
    act: Callable[[Site], Awaitable[None]]
    shows: str
    tokens_per_minute: int = PLENTY

    @property
    def tenant(self) -> str:
        """Each scenario has a tenant of its own, whose minute is unused."""
        return self.act.__name__


SCENARIOS = (
    Scenario("largest texts", largest_texts, "answered"),
    Scenario("most parts", most_parts, "answered"),
    Scenario("stop strings", stop_strings, "answered"),
    Scenario("header-only calls", header_only, "OVERLOADED"),
    Scenario("slow bodies", slow_bodies, "HTTP 429"),
    Scenario("slow readers", slow_readers, "answered"),
    Scenario("Explain", explain, "answered"),
    Scenario("prompts over the quota", over_quota, "OVERLOADED", tokens_per_minute=1000),
    Scenario("refused requests", refused, "INVALID_REQUEST"),
    Scenario("64 new long prompts to the draft", new_prompts, "answered"),
)


async def main() -> None:
    os.nice(_NICE)
    name, *places = sys.argv[1:]
    scenario, site = next(each for each in SCENARIOS if each.tenant == name), Site(*places)
    acting: asyncio.Task[None] | None = None
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line == "go":
            acting = asyncio.ensure_future(scenario.act(site))
        assert acting is not None and not acting.done(), "the scenario ended by itself"
        if line == "stop":
            acting.cancel()
            # gRPC may lose the cancellation of a call that begins just then.
            await asyncio.wait((acting,), timeout=_STOP_S)
        print(json.dumps(site.outcomes), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
