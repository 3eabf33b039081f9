"""One evaluation from the first request to the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from presift.cli.connection import ConnectionFlags, connect_async
from presift.cli.evaluation.arms import Arm
from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.progress import AnswerProgress
from presift.cli.evaluation.results import ResultFile
from presift.cli.evaluation.runner import AnswerSettings, Runner, check_served
from presift.cli.evaluation.summary import Summary, summarise
from presift.cli.render.console import print_stderr
from presift.cli.settings import CliSettings
from presift_client import Explanation, Info, Model, PresiftError


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The summary, what it is about (names and values), and by the number of a worst case its explanation, or why there
    is none."""

    summary: Summary
    header: Mapping[str, str]
    explained: Mapping[int, Explanation | str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to ask: each of `arms` for each of `examples`. `explains`: the worst cases are explained at the end."""

    examples: tuple[Example, ...]
    arms: tuple[Arm, ...]
    answers: AnswerSettings
    results: Path
    concurrency: int
    explains: bool

    async def run(self, connection: ConnectionFlags, settings: CliSettings, tenant: str | None) -> Evaluated:
        """Ask for the missing answers, then summarise all. Raises PresiftError, ValueError and OSError."""
        async with connect_async(connection, settings, tenant) as client:
            info = await client.info()
            check_served(self.arms, info)
            with ResultFile(self.results, self.answers.digest(info, tenant)) as results:
                runner = Runner(client, self.arms, self.answers, results)
                missing = runner.missing(self.examples)
                print_stderr(
                    f"{len(self.examples)} prompts, {len(self.arms)} answers to each: "
                    f"{missing} answers to ask for; they are kept in {self.results}"
                )
                with AnswerProgress(missing) as progress:
                    await runner.run(self.examples, self.concurrency, progress.advance)
                found = {**runner.failures, **results.results}
                summary = summarise(self.examples, self.arms, found, self.answers.seed)
                explained = await _explained(runner, summary) if self.explains else {}
        return Evaluated(summary, self._header(info), explained)

    def _header(self, info: Info) -> dict[str, str]:
        length = self.answers.max_new_tokens
        sampling = f"temperature {self.answers.temperature:g}" if self.answers.temperature else "greedy"
        return {
            "target": _model(info.target),
            "draft": _model(info.draft),
            "arms": ", ".join(arm.name for arm in self.arms),
            "answers": f"{sampling}, {'default length' if length is None else f'at most {length} tokens'}",
            "compressed above": f"{self.answers.compress_above} tokens",
            "prompts at a time": str(self.concurrency),
            "seed": str(self.answers.seed),
        }


async def _explained(runner: Runner, summary: Summary) -> dict[int, Explanation | str]:
    found: dict[int, Explanation | str] = {}
    if summary.cases:
        print_stderr(f"explaining the {len(summary.cases)} worst cases")
    for number, case in enumerate(summary.cases):
        try:
            found[number] = await runner.explain(case.example, case.arm)
        except PresiftError as error:
            found[number] = f"no explanation: {error}"
    return found


def _model(model: Model | None) -> str:
    return "none" if model is None else f"{model.id} ({model.revision[:12]})"
