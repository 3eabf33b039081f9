"""The soak: mixed traffic with churn for minutes, and nothing may be left of it.

    python -m tests.faults.soak --minutes 30        (from the repository's root; `--leak` plants a leak)

Callers come and go, leave in the middle, give too little time, and ask old and new prompts on all routes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from presift_client import AsyncClient

from .meter import Holding, complaints, weigh
from .scenarios import TARGETS
from .stack import Plan, Stack
from .traffic import ROUTES, Oracle, Question, ask, leaving

CALLERS = 12
KNOWN = range(24)  # prompts whose masks the oracle knows
CALLS_OF_A_CLIENT = 8
SHARE_OF_NEW, SHARE_OF_RESTLESS = 0.3, 0.3
IDLE_S = 3.0
# A load that targets tell is a second old; whoever left is forgotten within the idle time.
_ERRORS_OF_THE_RESTLESS = {"DeadlineExceeded"}


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a soak: calls, what was wrong with them, and what each process held before and after."""

    calls: int
    left: int
    faults: Counter[str]
    errors: Counter[str]
    before: dict[str, Holding]
    after: dict[str, Holding]

    def complaints(self) -> list[str]:
        """What must not be."""
        found = [f"wrong: {fault}" for fault in self.faults]
        found += [f"an error: {error}" for error in self.errors if error not in _ERRORS_OF_THE_RESTLESS]
        for name, before in self.before.items():
            found += complaints(name, before, self.after[name])
        return found

    def table(self) -> list[str]:
        """Lines of Markdown."""
        rows = ["| process | RSS, MiB | growth | files | tasks | free KV slots |", "|---|---|---|---|---|---|"]
        for name, before in self.before.items():
            after = self.after[name]
            rss = f"{before.rss_bytes / 2**20:.1f} -> {after.rss_bytes / 2**20:.1f}"
            growth = f"{after.rss_bytes / before.rss_bytes - 1:+.1%}"
            pairs = [f"{getattr(before, what)} -> {getattr(after, what)}" for what in ("files", "tasks")]
            kv = f"{before.free_kv_tokens} -> {after.free_kv_tokens}" if after.free_kv_tokens is not None else ""
            rows.append(f"| {name} | {rss} | {growth} | {' | '.join(pairs)} | {kv} |")
        return rows


class Soak:
    """Traffic with churn on a stack."""

    def __init__(self, stack: Stack, oracle: Oracle) -> None:
        self._stack = stack
        self._oracle = oracle
        self._numbers = iter(range(10_000, 100_000_000))
        self.calls = self.left = 0
        self.faults, self.errors = Counter[str](), Counter[str]()

    async def run(self, warm_up_s: float, soak_s: float) -> Report:
        """Warm up, weigh, soak, weigh."""
        await self._traffic(warm_up_s)
        before = await self._weighed()
        await self._traffic(soak_s)
        after = await self._weighed()
        return Report(self.calls, self.left, self.faults, self.errors, before, after)

    async def _weighed(self) -> dict[str, Holding]:
        await asyncio.sleep(IDLE_S)
        return await weigh(self._stack)

    async def _traffic(self, duration_s: float) -> None:
        until_s = time.monotonic() + duration_s
        await asyncio.gather(*(self._callers(random.Random(seed), until_s) for seed in range(CALLERS)))

    async def _callers(self, draw: random.Random, until_s: float) -> None:
        """One caller after another."""
        while time.monotonic() < until_s:
            async with AsyncClient(draw.choice(self._stack.addresses)) as client:
                for _ in range(draw.randrange(1, CALLS_OF_A_CLIENT)):
                    await self._call(client, draw)

    async def _call(self, client: AsyncClient, draw: random.Random) -> None:
        number = next(self._numbers) if draw.random() < SHARE_OF_NEW else draw.choice(KNOWN)
        question = Question(number, draw.choice(ROUTES), 20.0)
        if draw.random() < SHARE_OF_RESTLESS:
            question = leaving(question, draw)
            self.left += 1
        call = await ask(client, self._oracle, question)
        self.calls += 1
        self.faults.update([call.fault] if call.fault else [])
        self.errors.update([call.error] if call.error else [])
        await asyncio.sleep(draw.random() * 0.04)


async def soak(plan: Plan, warm_up_s: float, soak_s: float) -> Report:
    """A stack of its own, soaked."""
    async with Stack(plan) as stack:
        oracle = Oracle()
        async with AsyncClient(stack.addresses[0]) as client:
            await oracle.learn(client, KNOWN)
        return await Soak(stack, oracle).run(warm_up_s, soak_s)


def soak_plan(draft_model: Path, logs: Path, *, leaky_target: bool = False, targets: int = TARGETS) -> Plan:
    """A stack with every background worker on: the quality guard samples, but switches nothing (the echo engine's
    answers never agree)."""
    flags = ("--no-calibrate", "--guard-share=0.1", "--no-guard-switches")
    return Plan(draft_model, logs, targets=targets, orchestrator_flags=flags, leaky_target=leaky_target)


def _tiny_draft(folder: Path) -> Path:
    data, model = Path(__file__).parents[1] / "reference" / "data", folder / "tinyq"
    model.mkdir()
    shutil.copy(data / "tinyq.config.json", model / "config.json")
    shutil.copy(data / "tinyq.safetensors", model / "model.safetensors")
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up-minutes", type=float, default=5.0)
    parser.add_argument("--leak", action="store_true", help="plant a leak in the target: the check must find it")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        plan = soak_plan(_tiny_draft(Path(folder)), Path(folder) / "logs", leaky_target=chosen.leak)
        report = asyncio.run(soak(plan, chosen.warm_up_minutes * 60, chosen.minutes * 60))
    print(f"{report.calls} calls, {report.left} of them restless; errors {dict(report.errors)}")
    print("\n".join([*report.table(), *report.complaints()]))
    return 1 if report.complaints() else 0


if __name__ == "__main__":
    sys.exit(main())
