"""Routes of presift and its peers against `full`: one run, one table. See README.md beside this file.

PYTHONPATH=tests/bench .venv/bin/python -m peers.compare FILE.jsonl --peers truncation,bm25 --budgets 25%
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peers.bm25 import Bm25
from peers.passages import Peer, divide, shorten
from peers.truncation import Truncation
from rich.console import Console

from presift.cli.connection import ConnectionFlags, connect_async
from presift.cli.evaluation import report
from presift.cli.evaluation.arms import Arm, Budget, arms_of, budget_of
from presift.cli.evaluation.dataset import Example, read_dataset
from presift.cli.evaluation.progress import AnswerProgress
from presift.cli.evaluation.results import Answer, ResultFile
from presift.cli.evaluation.runner import AnswerSettings, Runner, check_served
from presift.cli.evaluation.suites.token_counter import TokenCounter
from presift.cli.evaluation.summary import Summary, summarise
from presift.cli.settings import CliSettings
from presift.core.plan import Route
from presift_client import AsyncClient, Generation

PEERS: dict[str, Peer] = {peer.name: peer for peer in (Truncation(), Bm25())}


@dataclass(frozen=True, slots=True)
class PeerArm(Arm):
    """A peer with a budget; the target reads its text by route `full`."""

    peer: str = ""

    @property
    def name(self) -> str:
        return f"{self.peer} {self.budget}"

    def options(self, prompt_tokens: int | None) -> dict[str, Any]:
        assert self.budget is not None
        limit = self.budget.limit(prompt_tokens)
        return {"route": str(self.route), "peer": self.peer, "max_prompt_tokens": limit}


class PeerClient:
    """An orchestrator's client that takes the option `peer` too: the prompt is shortened to `max_prompt_tokens` first.

    The answer's decision has the tokens of the whole prompt, and its times include the peer's.
    """

    def __init__(self, client: AsyncClient, counter: TokenCounter) -> None:
        self._client = client
        self._counter = counter

    async def generate(self, *, peer: str | None = None, **options: Any) -> Generation:
        if peer is None:
            return await self._client.generate(**options)
        most, prompt = options.pop("max_prompt_tokens"), {"messages": options.pop("messages")}
        whole = await self._count(prompt)
        counting, started = 0.0, time.perf_counter()

        async def count(tried: dict[str, Any]) -> int:
            nonlocal counting
            asked = time.perf_counter()
            found = await self._count(tried)
            counting += time.perf_counter() - asked
            return found

        shortened = await shorten(prompt, PEERS[peer], most, count)
        took_ms = (time.perf_counter() - started - counting) * 1e3
        found = await self._client.generate(**options, **shortened)
        usage = replace(found.usage, ttft_ms=found.usage.ttft_ms + took_ms, total_ms=found.usage.total_ms + took_ms)
        return replace(found, usage=usage, decision=replace(found.decision, prompt_tokens=whole))

    async def explain(self, **options: Any) -> Any:
        return await self._client.explain(**options)

    async def _count(self, prompt: dict[str, Any]) -> int:
        return await self._counter.chat(prompt["messages"])


def arms(routes: str, budgets: str, peers: str) -> tuple[Arm, ...]:
    """`full`, the routes and the peers, each with each budget. Raises ValueError."""
    sizes = [budget_of(word.strip()) for word in budgets.split(",")]
    if Budget() in sizes:
        raise ValueError("budgets has 'default', which peers do not have; give a share or a number of tokens")
    names = [name.strip() for name in peers.split(",")]
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peers has '{name}'; each must be one of {', '.join(PEERS)}")
    found = tuple(PeerArm(Route.FULL, size, name) for name in names for size in sizes)
    return (*arms_of(routes, budgets), *found)


async def compare(
    client: AsyncClient, examples: Sequence[Example], compared: Sequence[Arm], answers: AnswerSettings, results: Path
) -> Summary:
    """Ask for the missing answers, then summarise all. Raises ValueError for a prompt that peers cannot shorten.

    The peers come last: the target reads only a part of each prompt for them, which does not make it a prompt that was
    read before. Nor was their part.
    """
    for example in examples:
        divide(dict(example.prompt))
    info = await client.info()
    check_served(compared, info)
    peers: Any = PeerClient(client, TokenCounter(client, answers.deadline_s))
    with ResultFile(results, answers.digest(info, None)) as kept:
        routes = [arm for arm in compared if not isinstance(arm, PeerArm)]
        others = [arm for arm in compared if isinstance(arm, PeerArm)]
        for some in (routes, others):
            runner = Runner(peers, some, answers, kept)
            with AnswerProgress(runner.missing(examples)) as progress:
                await runner.run(examples, 1, progress.advance)
        names = {arm.name for arm in others}
        found = {
            key: replace(result, first_reading=True) if key.arm in names and isinstance(result, Answer) else result
            for key, result in kept.results.items()
        }
        return summarise(examples, compared, found, answers.seed)


async def _main(options: argparse.Namespace) -> Summary:
    examples = read_dataset(options.file, options.limit).examples
    compared = arms(options.routes, options.budgets, options.peers)
    answers = AnswerSettings(options.max_new_tokens)
    results = options.results or options.file.with_suffix(".peers.jsonl")
    async with connect_async(ConnectionFlags(address=options.address), CliSettings()) as client:
        return await compare(client, examples, compared, answers, results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--routes", default="spec_pc")
    parser.add_argument("--budgets", default="25%")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--address")
    options = parser.parse_args()
    summary = asyncio.run(_main(options))
    report.show(summary, Console())
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(summary, {})) + "\n", encoding="utf-8")
    return 1 if summary.missing else 0


if __name__ == "__main__":
    sys.exit(main())
