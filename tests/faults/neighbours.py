"""Tenant B beside a noisy tenant A: B's time to first token, quiet and noisy in turn, and the tokens that A used."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import presift
from presift_client import AsyncClient, Decision, Delta, PresiftError

from .bare_stack import BareStack
from .noise import EXPLAINED, Scenario

ROUNDS = 3
# B's calls in a round, quiet and noisy.
CALLS, CALLERS = 40, 4
# At least from the beginning of the noise until it counts, at most until A has what the scenario shows; and after its
# end until it is quiet again.
BEFORE_S, PATIENCE_S, AFTER_S = 1.0, 60.0, 2.0
# B's 95th percentile may be so many times its quiet value.
RATIO_LIMIT = 2.0
FIRST_TOKEN_S, TOKEN_S = 0.1, 0.01
# After so long the target has written what it counted.
_WRITTEN_S = 1.0


@dataclass
class Phase:
    """B's calls of a time: seconds to the first token, and the kinds of what went wrong."""

    times_s: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def p95_s(self) -> float:
        return sorted(self.times_s)[math.ceil(0.95 * len(self.times_s)) - 1]


@dataclass(frozen=True, slots=True)
class NeighbourRow:
    """What a scenario came to: B's 95th percentiles in seconds by round, what went wrong for B, the outcomes of A's
    calls, and the tokens that A used in so many minutes."""

    scenario: Scenario
    quiet_s: list[float]
    noisy_s: list[float]
    calls: int
    wrong: Counter[str]
    outcomes: Counter[str]
    tokens: int
    minutes: float

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: the machine may be busy in one of them."""
        pairs = zip(self.quiet_s, self.noisy_s, strict=True)
        return statistics.median(noisy_s / quiet_s for quiet_s, noisy_s in pairs)

    @property
    def quota(self) -> int:
        """The most tokens in that time: those of a minute at once, and then as many as minutes pass."""
        return math.ceil(self.scenario.tokens_per_minute * (1 + self.minutes))

    def complaints(self) -> list[str]:
        """What must not be."""
        found = [f"B: {what} {count}" for what, count in self.wrong.items()]
        if self.ratio > RATIO_LIMIT:
            found.append(f"B's 95th percentile is {self.ratio:.2f} times its quiet value")
        if self.tokens > self.quota:
            found.append(f"A used {self.tokens} tokens of {self.quota}")
        if not self.outcomes[self.scenario.shows]:
            found.append(f"no call of A was {self.scenario.shows}: {dict(self.outcomes)}")
        return found


def neighbours_table(rows: Sequence[NeighbourRow]) -> list[str]:
    """As lines of Markdown."""
    lines = [
        "| what A does | B's p95 quiet, ms | noisy, ms | ratio | B's calls | wrong | outcomes of A's calls |"
        " A's tokens | of at most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        quiet_ms, noisy_ms = (1000 * statistics.median(each) for each in (row.quiet_s, row.noisy_s))
        outcomes = {name: count for name, count in row.outcomes.items() if name != EXPLAINED}
        measured = (f"{quiet_ms:.0f}", f"{noisy_ms:.0f}", f"{row.ratio:.2f}", f"{row.calls:,}", _counted(row.wrong))
        cells = (row.scenario.name, *measured, _counted(outcomes), f"{row.tokens:,}", f"{row.quota:,}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(kinds.items())) or "none"


class QuietTenant:
    """Tenant B: four callers ask one short thing after another, every other one with a new prompt for the draft."""

    def __init__(self, address: str, key: str) -> None:
        self._client = AsyncClient(address, api_key=key)
        self._draw = random.Random(0)

    async def listen(self) -> Phase:
        """Make CALLS calls."""
        phase, waiting = Phase(), iter(range(CALLS))
        await asyncio.gather(*(self._caller(phase, waiting) for _ in range(CALLERS)))
        return phase

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _caller(self, phase: Phase, waiting: Iterator[int]) -> None:
        for number in waiting:
            await self._ask(phase, "full" if number % 2 else "spec_pc")

    async def _ask(self, phase: Phase, route: str) -> None:
        ids, began_s, first_s = self._draw.choices(range(1, 256), k=300), time.perf_counter(), None
        try:
            async for event in self._client.stream(token_ids=ids, route=route, max_new_tokens=2, deadline_s=60):
                if isinstance(event, Decision) and event.route != route:
                    phase.wrong[event.reason] += 1
                if isinstance(event, Delta) and first_s is None:
                    first_s = time.perf_counter() - began_s
                    phase.times_s.append(first_s)
        except PresiftError as error:
            phase.wrong[type(error).__name__] += 1


class NoisyTenant:
    """Tenant A's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def go(self, shows: str) -> None:
        """Begin, and wait until one more call has the outcome `shows`, but not for ever."""
        until_s, before = time.monotonic() + PATIENCE_S, (await self._say("go"))[shows]
        await asyncio.sleep(BEFORE_S)
        while (await self._say("tell"))[shows] == before and time.monotonic() < until_s:
            await asyncio.sleep(0.2)

    async def stop(self) -> Counter[str]:
        """The outcomes of its calls so far."""
        return await self._say("stop")

    async def _say(self, line: str) -> Counter[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            answer = await self._process.stdout.readline()
        assert answer, "the noise ended"
        return Counter(json.loads(answer))


@asynccontextmanager
async def noisy_tenant(stack: BareStack, scenario: Scenario, key: str) -> AsyncIterator[NoisyTenant]:
    places = [Path(__file__).parent, Path(presift.__file__).parents[1]]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "noise", scenario.tenant, stack.address("orchestrator"), stack.http_address, key),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
    )
    try:
        yield NoisyTenant(process)
    finally:
        process.kill()
        await process.wait()


async def play(stack: BareStack, scenario: Scenario, keys: dict[str, str], quiet_tenant: QuietTenant) -> NeighbourRow:
    """Quiet and noise in turn. `keys` are those of the tenants."""
    quiet, noisy, outcomes, began_s = list[Phase](), list[Phase](), Counter[str](), time.monotonic()
    before = await tokens_of_others(stack)
    async with noisy_tenant(stack, scenario, keys[scenario.tenant]) as noise:
        for _ in range(ROUNDS):
            quiet.append(await quiet_tenant.listen())
            await noise.go(scenario.shows)
            noisy.append(await quiet_tenant.listen())
            outcomes = await noise.stop()
            await asyncio.sleep(AFTER_S)
    used = await tokens_of_others(stack) - before + outcomes[EXPLAINED]
    wrong = sum((phase.wrong for phase in (*quiet, *noisy)), Counter[str]())
    return NeighbourRow(
        scenario,
        [phase.p95_s for phase in quiet],
        [phase.p95_s for phase in noisy],
        sum(len(phase.times_s) for phase in (*quiet, *noisy)),
        wrong,
        outcomes,
        used,
        (time.monotonic() - began_s) / 60,
    )


async def tokens_of_others(stack: BareStack) -> int:
    """The tokens that the target has counted for all salts but B's: the first that it saw."""
    await asyncio.sleep(_WRITTEN_S)
    counted: dict[str, int] = json.loads(stack.tokens_file.read_text())
    return sum(list(counted.values())[1:])
