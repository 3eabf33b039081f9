"""Routes of presift and its peers against `full`: one run, one table. See README.md beside this file.

PYTHONPATH=tests/bench .venv/bin/python -m peers.compare FILE.jsonl --peers truncation,bm25 --budgets 25%
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peers.answering import AnsweringPeer
from peers.clients import AnsweringClient, ShorteningClient
from peers.passages import Peer, divide
from peers.registry import PEERS, Answering, Models, Places, Shortening
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
from presift_client import AsyncClient, PresiftError


@dataclass(frozen=True, slots=True)
class PeerArm(Arm):
    """A peer with a budget, or one that takes none. In the table its route is `full`."""

    peer: str = ""

    @property
    def name(self) -> str:
        return self.peer if self.budget is None else f"{self.peer} {self.budget}"

    def options(self, prompt_tokens: int | None) -> dict[str, Any]:
        if self.budget is None:
            return {"route": str(self.route)}
        option = "max_prompt_tokens" if isinstance(PEERS[self.peer], Shortening) else "max_kv_tokens"
        return {"route": str(self.route), option: self.budget.limit(prompt_tokens)}


@dataclass(frozen=True, slots=True)
class Compared:
    """The summary, and the most memory in MiB that each peer's own processes took while they answered."""

    summary: Summary
    peak_mib: dict[str, float] = field(default_factory=dict)


def arms(routes: str, budgets: str, peers: str) -> tuple[Arm, ...]:
    """`full`, the routes and the peers, each with each budget if it takes one. Raises ValueError."""
    sizes = [budget_of(word.strip()) for word in budgets.split(",")]
    if Budget() in sizes:
        raise ValueError("budgets has 'default', which peers do not have; give a share or a number of tokens")
    names = [name.strip() for name in peers.split(",")]
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peers has '{name}'; each must be one of {', '.join(PEERS)}")
    found = [PeerArm(Route.FULL, size, name) for name in names for size in _sizes(name, sizes)]
    return tuple(dict.fromkeys((*arms_of(routes, budgets), *found)))


async def compare(
    client: AsyncClient,
    examples: Sequence[Example],
    compared: Sequence[Arm],
    answers: AnswerSettings,
    results: Path,
    *,
    places: Places,
) -> Compared:
    """Ask for the missing answers, then summarise all. Raises ValueError for what cannot be compared.

    The peers come last, one after the other: none of their answers makes a prompt one that was read before.
    """
    info = await client.info()
    _check(examples, compared, answers)
    check_served(compared, info)
    counter, models = TokenCounter(client, answers.deadline_s), Models(info, places)
    routes = [arm for arm in compared if not isinstance(arm, PeerArm)]
    others = [arm for arm in compared if isinstance(arm, PeerArm)]
    peaks: dict[str, float] = {}
    with ResultFile(results, answers.digest(info, None)) as kept:
        await _ask(Runner(client, routes, answers, kept), examples)
        for name in dict.fromkeys(arm.peer for arm in others):
            some = [arm for arm in others if arm.peer == name]
            if not Runner(client, some, answers, kept).missing(examples):
                continue
            async with PEERS[name].start(models) as peer:
                asked: Any = _client(name, client, counter, peer, models)
                await _ask(Runner(asked, some, answers, kept), examples)
                if peer.peak_mib is not None:
                    peaks[name] = peer.peak_mib
        names = {arm.name for arm in others}
        found = {
            key: replace(result, first_reading=True) if key.arm in names and isinstance(result, Answer) else result
            for key, result in kept.results.items()
        }
        return Compared(summarise(examples, compared, found, answers.seed), peaks)


def _sizes(name: str, sizes: Iterable[Budget]) -> Iterable[Budget | None]:
    kind = PEERS[name]
    return [None] if isinstance(kind, Answering) and not kind.takes_budget else sizes


def _check(examples: Sequence[Example], compared: Sequence[Arm], answers: AnswerSettings) -> None:
    for example in examples:
        divide(dict(example.prompt))
    answering = [arm.peer for arm in compared if isinstance(arm, PeerArm) and isinstance(PEERS[arm.peer], Answering)]
    if answering and any(answers.of(example).max_new_tokens is None for example in examples):
        raise ValueError(f"max-new-tokens is not set; {answering[0]} does not know the stack's default")


def _client(
    name: str, client: AsyncClient, counter: TokenCounter, peer: Peer | AnsweringPeer, models: Models
) -> ShorteningClient | AnsweringClient:
    if isinstance(PEERS[name], Shortening):
        return ShorteningClient(client, counter, peer)  # type: ignore[arg-type]
    return AnsweringClient(client, counter, peer, models.info.target)  # type: ignore[arg-type]


async def _ask(runner: Runner, examples: Sequence[Example]) -> None:
    with AnswerProgress(runner.missing(examples)) as progress:
        await runner.run(examples, 1, progress.advance)


async def _main(options: argparse.Namespace) -> Compared:
    settings = CliSettings()
    examples = read_dataset(options.file, options.limit).examples
    compared = arms(options.routes, options.budgets, options.peers)
    answers = AnswerSettings(options.max_new_tokens)
    results = options.results or options.file.with_suffix(".peers.jsonl")
    places = Places(options.models or settings.home / "models", options.sglang_address)
    async with connect_async(ConnectionFlags(address=options.address), settings) as client:
        return await compare(client, examples, compared, answers, results, places=places)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="prompts, as presift eval takes them")
    parser.add_argument("--peers", default="truncation,bm25", help=f"any of {', '.join(PEERS)}")
    parser.add_argument("--routes", default="spec_pc", help="presift's routes beside full")
    parser.add_argument("--budgets", default="25%", help="tokens, or shares of each prompt")
    parser.add_argument("--limit", type=int, help="take only so many prompts")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer, if a prompt does not say")
    parser.add_argument("--models", type=Path, help="the folder of the stack's model folders (PRESIFT_HOME/models)")
    parser.add_argument("--sglang-address", help="URL of a plain SGLang server; without it, one is started on the CPU")
    parser.add_argument("--results", type=Path, help="JSONL of answers; those that it has are not asked for again")
    parser.add_argument("--json", type=Path, help="write the table as JSON too")
    parser.add_argument("--address", help="HOST:PORT of the orchestrator")
    options = parser.parse_args()
    try:
        found = asyncio.run(_main(options))
    except (ValueError, OSError, PresiftError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report.show(found.summary, Console())
    peaks = {f"peak memory of {name}'s processes": f"{peak:,.0f} MiB" for name, peak in found.peak_mib.items()}
    for name, peak in peaks.items():
        print(f"{name}: {peak}")
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(found.summary, peaks)) + "\n", encoding="utf-8")
    return 1 if found.summary.missing else 0


if __name__ == "__main__":
    sys.exit(main())
