"""Callers during an upgrade, over gRPC and HTTP, and what came of each step."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from .stack import Stack
from .traffic import FALLBACKS, HEAD_TOKENS, NEW_TOKENS, Book, Crowd, Oracle, Question, prompt_of

NUMBERS = range(6)  # the prompts that are asked about
CALLERS = 4
_PATIENCE_S = 60.0  # starting a service takes the processor from the others
_THINKING_S = 0.3
_BEAT_S = 0.05
_STALL_S = 2.0  # services give up a connection that has been silent for 3 s
_HTTP_ROUTES = ("full", "spec_pc", "spec_kv")
_KINDS = ("draft", "target", "orchestrator")


def order_of(name: str) -> tuple[int, str]:
    """For sorting services: drafts and targets are upgraded first."""
    return _KINDS.index(name.partition("-")[0]), name


class Patient(Crowd):
    """Callers who have all orchestrators' addresses, each a different one first, and one long deadline."""

    def __init__(self, addresses: Sequence[str], oracle: Oracle, callers: int = CALLERS) -> None:
        orders = ([*addresses[first:], *addresses[:first]] for first in range(len(addresses)))
        super().__init__([f"ipv4:{','.join(order)}" for order in orders], oracle, NUMBERS, callers)

    def questions(self, draw: random.Random) -> Iterator[Question]:
        return (replace(question, deadline_s=_PATIENCE_S) for question in super().questions(draw))


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One call over HTTP, done: `error` is what the caller was told, `fallback` why no draft was used, `fault` what was
    wrong; else empty."""

    error: str = ""
    fallback: str = ""
    fault: str = ""


@asynccontextmanager
async def calling_http(stack: Stack) -> AsyncIterator[list[HttpCall]]:
    """One caller asks without a pause until the block ends, as a load balancer would: it knows which orchestrators have
    started, and sends a call to the next one only if the first refused it unread. Answers are compared with the first.
    """
    calls: list[HttpCall] = []
    over = asyncio.Event()

    async def ask_on() -> None:
        draw, expected = random.Random(1), dict[tuple[int, str], list[int]]()
        async with httpx.AsyncClient(timeout=_PATIENCE_S, trust_env=False) as client:
            while not over.is_set():
                key = draw.choice(NUMBERS), draw.choice(_HTTP_ROUTES)
                calls.append(await _ask(client, stack, key, expected))
                await asyncio.sleep(_THINKING_S)

    asking = asyncio.create_task(ask_on())
    try:
        yield calls
    finally:
        over.set()
        await asking


async def _ask(
    client: httpx.AsyncClient, stack: Stack, key: tuple[int, str], expected: dict[tuple[int, str], list[int]]
) -> HttpCall:
    processes = [member.running for name, member in stack.members.items() if name.startswith("orchestrator")]
    for process in random.sample(processes, len(processes)):
        if not process.address:  # not ready
            continue
        try:
            response = await client.post(f"http://{process.http_address}/v1/completions", json=_body(*key))
        except httpx.ConnectError:
            continue
        except httpx.HTTPError as error:
            return HttpCall(type(error).__name__)
        if response.status_code != 503 or "shutting_down" not in response.text:
            return _judged(response, key, expected)
    return HttpCall("no orchestrator")


def _judged(response: httpx.Response, key: tuple[int, str], expected: dict[tuple[int, str], list[int]]) -> HttpCall:
    if response.status_code != 200:
        return HttpCall(f"HTTP {response.status_code}: {response.text}")
    body = response.json()
    decision, tokens = body["presift"]["decision"], body["choices"][0]["token_ids"]
    if decision["reason"] in FALLBACKS:
        return HttpCall(fallback=decision["reason"])
    if decision["route"] != key[1]:
        return HttpCall(fault=f"route {decision['route']} for {key[1]}")
    is_right = len(tokens) == NEW_TOKENS and expected.setdefault(key, tokens) == tokens
    return HttpCall(fault="" if is_right else f"other tokens on {key[1]}")


def _body(number: int, route: str) -> dict[str, Any]:
    options = {
        "route": route,
        "token_ids": True,
        "protected_spans": [{"start": 0, "end": HEAD_TOKENS}],
        "sampling": {"ignore_eos": True},
    }
    return {
        "model": "echo",
        "prompt": prompt_of(number),
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "presift": options,
    }


class Pulse:
    """For how long this process stood still: the proxies are in it, so that then all connections do."""

    def __init__(self) -> None:
        self._longest_s = 0.0

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[Pulse]:
        beating = asyncio.create_task(self._beat())
        try:
            yield self
        finally:
            beating.cancel()

    def take_s(self) -> float:
        """The longest time since the last call, seconds."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s

    async def _beat(self) -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            self._longest_s = max(self._longest_s, time.monotonic() - began_s - _BEAT_S)


@dataclass(frozen=True, slots=True)
class UpgradeRow:
    """One service replaced by another version's: what the callers noticed until the next step, and for how long this
    test stood still, in seconds."""

    step: str
    calls: int
    errors: Counter[str]
    fallbacks: Counter[str]
    faults: Counter[str]
    stall_s: float

    @classmethod
    def of(cls, step: str, book: Book, http: Sequence[HttpCall], stall_s: float) -> UpgradeRow:
        """From the calls over gRPC and HTTP that ended in this step."""
        errors = book.errors + Counter(call.error for call in http if call.error)
        fallbacks = book.fallbacks + Counter(call.fallback for call in http if call.fallback)
        faults = book.faults + Counter(call.fault for call in http if call.fault)
        return cls(step, len(book.calls) + len(http), errors, fallbacks, faults, stall_s)

    def complaints(self) -> list[str]:
        """What must not be. While another replica serves, callers notice nothing, unless a machine stood still for so
        long that connections were given up: then they were at least told."""
        noticed = {"wrong": self.faults}
        if self.stall_s < _STALL_S:
            noticed |= {"errors": self.errors, "fallbacks": self.fallbacks}
        found = [f"{self.step}: {kind}: {dict(seen)}" for kind, seen in noticed.items() if seen]
        return found if self.calls else [f"{self.step}: no calls"]


def upgrade_table(rows: Sequence[UpgradeRow]) -> list[str]:
    """As lines of Markdown."""
    lines = [
        "| service: its new version | calls | errors | answered in full without a draft | wrong |"
        " longest stall of the test, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts = (row.calls, row.errors.total(), row.fallbacks.total(), row.faults.total())
        lines.append(f"| {' | '.join(map(str, (row.step, *counts, f'{row.stall_s:.1f}')))} |")
    return lines
