"""The faults, what they may cost, and one scenario: a crowd asks, a fault comes and goes, and everything is counted."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .stack import Stack
from .traffic import Book, Crowd

TARGETS = 2
NUMBERS = range(40)  # the prompts that are asked about
BEFORE_S, FAULT_S = 2.0, 4.0
QUIET_S = 3.0  # so long without trouble is recovered
PATIENCE_S = 25.0
RECOVERY_LIMIT_S = 10.0
LATE_LIMIT_S = 1.0

S = TypeVar("S", bound=Stack)


@dataclass(frozen=True, slots=True)
class Fault(Generic[S]):
    """What happens to a service of a stack: it begins, lasts FAULT_S, and ends."""

    name: str
    begin: Callable[[S, str], Awaitable[None]]
    end: Callable[[S, str], Awaitable[None]]


async def kill(stack: Stack, victim: str) -> None:
    stack.kill(victim)


async def launch(stack: Stack, victim: str) -> None:
    await stack.launch(victim)


async def _stop(stack: Stack, victim: str) -> None:
    stack.signal(victim, signal.SIGSTOP)


async def _continue(stack: Stack, victim: str) -> None:
    stack.signal(victim, signal.SIGCONT)


async def _restart(stack: Stack, victim: str) -> None:
    await stack.end(victim)
    await stack.launch(victim)


async def _slow(stack: Stack, victim: str) -> None:
    stack.proxies[victim].delay_s = 0.3


async def _throttle(stack: Stack, victim: str) -> None:
    stack.proxies[victim].bytes_per_s = 2_000


async def _garbage(stack: Stack, victim: str) -> None:
    stack.proxies[victim].garbage = True


async def _hold(stack: Stack, victim: str) -> None:
    stack.proxies[victim].hold()


async def _half_open(stack: Stack, victim: str) -> None:
    stack.proxies[victim].half_open()


async def _cut(stack: Stack, victim: str) -> None:
    for _ in range(6):
        stack.proxies[victim].cut()
        await asyncio.sleep(0.3)


async def _behave(stack: Stack, victim: str) -> None:
    stack.proxies[victim].behave()


async def nothing(stack: Stack, victim: str) -> None:
    """It is over already."""


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill -9", kill, launch),
        Fault("SIGSTOP", _stop, _continue),
        Fault("restart", _restart, nothing),
        Fault("slow", _slow, _behave),
        Fault("throttled", _throttle, _behave),
        Fault("garbage", _garbage, _behave),
        Fault("held", _hold, _behave),
        Fault("half-open", _half_open, _behave),
        Fault("cut", _cut, _behave),
    )
}

# What callers may see. Trouble of draft and cache is none of theirs. A target may be gone in the middle of an answer,
# or be silent until a deadline. An orchestrator is what its callers hang on.
ALLOWED: dict[str, frozenset[str]] = {
    "draft": frozenset(),
    "cache": frozenset(),
    "DNS": frozenset(),
    "clock": frozenset(),
    "stderr": frozenset(),
    "each": frozenset(),
    "target": frozenset({"Unavailable", "DeadlineExceeded"}),
    "orchestrator": frozenset({"Unavailable", "DeadlineExceeded"}),
}
ALLOWED_TOO = {("orchestrator", "garbage"): frozenset({"InternalError"})}


@dataclass(frozen=True, slots=True)
class Row:
    """What a scenario came to. `recovery_s` from the end of the fault to the last call that began in trouble."""

    victim: str
    fault: str
    calls: int
    errors: Counter[str]
    fallbacks: Counter[str]
    faults: Counter[str]
    latest_s: float
    recovery_s: float

    @property
    def kind(self) -> str:
        return re.split("[- ]", self.victim)[0]

    @property
    def allowed(self) -> frozenset[str]:
        """The errors that callers may see."""
        return ALLOWED[self.kind] | ALLOWED_TOO.get((self.kind, self.fault), frozenset())

    def complaints(self) -> list[str]:
        """What must not be."""
        found = [f"wrong: {fault}" for fault in self.faults]
        found += [f"an error that is not allowed: {name}" for name in self.errors if name not in self.allowed]
        if self.latest_s > LATE_LIMIT_S:
            found.append(f"a call ended {self.latest_s:.1f} s after its deadline")
        if self.recovery_s > RECOVERY_LIMIT_S:
            found.append(f"recovered only after {self.recovery_s:.1f} s")
        return found


async def play(stack: S, crowd: Crowd, victim: str, fault: Fault[S]) -> Row:
    """One scenario, from a healthy stack to a healthy stack."""
    async with crowd.asking() as book:
        await asyncio.sleep(BEFORE_S)
        async with asyncio.timeout(PATIENCE_S):
            while not book.calls:
                await asyncio.sleep(0.1)
        assert not book.errors, f"not healthy before: {book.errors}"
        await fault.begin(stack, victim)
        await asyncio.sleep(FAULT_S)
        await fault.end(stack, victim)
        ended_s = time.monotonic()
        await _until_quiet(book, ended_s, crowd)
    trouble = [call.began_s for call in book.since(ended_s).calls if not call.is_well]
    recovery_s = max(trouble) - ended_s if trouble else 0.0
    return Row(victim, fault.name, len(book.calls), book.errors, book.fallbacks, book.faults, book.latest_s, recovery_s)


async def _until_quiet(book: Book, ended_s: float, crowd: Crowd) -> None:
    """Until every caller was answered well since and nothing began badly for a while; or it lasts too long."""
    while (now_s := time.monotonic()) < ended_s + PATIENCE_S:
        since = book.since(ended_s)
        well = {call.caller for call in since.calls if call.is_well}
        last_s = max((call.ended_s for call in since.calls if not call.is_well), default=ended_s)
        if len(well) == crowd.callers and now_s - last_s > QUIET_S:
            return
        await asyncio.sleep(0.1)


def table_of(rows: list[Row]) -> list[str]:
    """The scenarios as lines of Markdown."""
    lines = [
        "| victim | fault | calls | errors seen | errors allowed | answered in full without a draft | wrong |"
        " latest after its deadline, s | recovery, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        allowed = ", ".join(sorted(row.allowed)) or "none"
        cells = (
            *(row.victim, row.fault, row.calls, _counted(row.errors), allowed, _counted(row.fallbacks)),
            *(_counted(row.faults, "0"), f"{row.latest_s:.2f}", f"{row.recovery_s:.1f}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _counted(counter: Counter[str], none: str = "none") -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or none
