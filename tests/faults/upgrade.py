"""Callers during an upgrade, over gRPC and HTTP, and what came of each step."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from .stack import Stack
from .traffic import HEAD_TOKENS, NEW_TOKENS, Book, Crowd, Oracle, Question, prompt_of

NUMBERS = range(6)  # the prompts that are asked about
CALLERS = 4
_PATIENCE_S = 60.0  # starting a service takes the processor from the others
_THINKING_S = 0.3
_HTTP_ROUTES = ("full", "spec_pc", "spec_kv")
_KINDS = ("draft", "target", "orchestrator")


def order_of(name: str) -> tuple[int, str]:
    """For sorting services: drafts and targets are upgraded first."""
    return _KINDS.index(name.partition("-")[0]), name


class Patient(Crowd):
    """Callers who have all orchestrators' addresses, half of them in the other order, and one long deadline."""

    def __init__(self, addresses: Sequence[str], oracle: Oracle) -> None:
        orders = (addresses, addresses[::-1])
        super().__init__([f"ipv4:{','.join(order)}" for order in orders], oracle, NUMBERS, CALLERS)

    def questions(self, draw: random.Random) -> Iterator[Question]:
        return (replace(question, deadline_s=_PATIENCE_S) for question in super().questions(draw))


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One call over HTTP: `error` is what the caller was told, `fault` what was wrong about an answer; else empty."""

    error: str = ""
    fault: str = ""


@asynccontextmanager
async def calling_http(stack: Stack) -> AsyncIterator[list[HttpCall]]:
    """One caller asks without a pause until the block ends, as a load balancer would: the next orchestrator gets a call
    whose connection was refused, and no call is sent twice. Answers are compared with the first ones."""
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
    names = [name for name in stack.members if name.startswith("orchestrator")]
    for name in random.sample(names, len(names)):
        url = f"http://{stack.members[name].running.http_address}/v1/completions"
        try:
            response = await client.post(url, json=_body(*key))
        except httpx.ConnectError:
            continue
        except httpx.HTTPError as error:
            return HttpCall(type(error).__name__)
        if response.status_code != 200:
            return HttpCall(f"HTTP {response.status_code}")
        body = response.json()
        route, tokens = body["presift"]["decision"]["route"], body["choices"][0]["token_ids"]
        if route != key[1]:
            return HttpCall(fault=f"route {route} for {key[1]}")
        is_right = len(tokens) == NEW_TOKENS and expected.setdefault(key, tokens) == tokens
        return HttpCall(fault="" if is_right else f"other tokens on {route}")
    return HttpCall("no orchestrator")


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


@dataclass(frozen=True, slots=True)
class UpgradeRow:
    """One service replaced by another version's: what the callers noticed until the next step."""

    step: str
    calls: int
    errors: Counter[str]
    fallbacks: Counter[str]
    faults: Counter[str]

    @classmethod
    def of(cls, step: str, book: Book, http: Sequence[HttpCall]) -> UpgradeRow:
        """From the calls over gRPC and HTTP that began in this step."""
        errors = book.errors + Counter(call.error for call in http if call.error)
        faults = book.faults + Counter(call.fault for call in http if call.fault)
        return cls(step, len(book.calls) + len(http), errors, book.fallbacks, faults)

    def complaints(self) -> list[str]:
        """What must not be: while another replica serves, callers notice nothing."""
        noticed = {"errors": self.errors, "fallbacks": self.fallbacks, "wrong": self.faults}
        found = [f"{self.step}: {kind}: {dict(seen)}" for kind, seen in noticed.items() if seen]
        return found if self.calls else [f"{self.step}: no calls"]


def upgrade_table(rows: Sequence[UpgradeRow]) -> list[str]:
    """As lines of Markdown."""
    lines = [
        "| service: its new version | calls | errors | answered in full without a draft | wrong |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.step, row.calls, row.errors.total(), row.fallbacks.total(), row.faults.total())
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines
