"""The demo: one question about a real document, asked five times over gRPC: in full; with a compressed prompt, without
and with a cache hit; with compressed KV, selected and reused. Exits non-zero if an answer lacks the fact, if another
route was applied, or if a process is left running.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from presift.cli.settings import CliSettings
from presift.cli.stack.stack import LocalStack, ServiceFailed, StackOptions
from presift_client import Client, Generation
from presift_client.requests import Options
from presift_demo_models.fetch import list_models

DOCUMENT = Path(__file__).with_name("tz-news.txt")
QUESTION = "On which date did Miquelon adopt standard time in 1911? Answer in one short sentence."
FACT = "June 15"
CAPACITY = 512
HEADINGS = (
    *("run", "route", "prompt", "read", "KV held", "cache", "coverage"),
    *("draft ms", "KV reused", "target TTFT ms", "TTFT ms", "answer"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One request: its options, and what must have been applied (route, cache, entry reused)."""

    title: str
    options: Options
    applied: tuple[str, str, bool]


# The draft's lookahead, so that the draft and the cache take part; the default lets the target look ahead if sooner.
BY_THE_DRAFT: Options = {"route": "spec_kv", "kv_lookahead": "draft", "max_kv_tokens": CAPACITY}

RUNS = (
    Run("full", {"route": "full"}, ("full", "not_used", False)),
    Run("spec_pc, cold", {"route": "spec_pc", "max_prompt_tokens": CAPACITY}, ("spec_pc", "miss", False)),
    Run("spec_pc, cached", {"route": "spec_pc", "max_prompt_tokens": CAPACITY}, ("spec_pc", "hit", False)),
    # The document's KV is still in the radix cache, from the first run: only the rows for the selection are read.
    Run("spec_kv, cold", BY_THE_DRAFT, ("spec_kv", "miss", False)),
    Run("spec_kv, again", BY_THE_DRAFT, ("spec_kv", "hit", True)),
)


def main() -> int:
    """Exit status: 0 if all answers contain the fact, as requested, and no process is left."""
    home = CliSettings().home
    ready = list_models(home)
    draft, target = (ready[name] for name in ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"))
    if draft is None or target is None:
        say("the demo models are missing: run make demo-models")
        return 1
    with tempfile.TemporaryDirectory(prefix="presift-demo-") as folder:
        options = StackOptions(str(draft), str(target), str(target), Path(folder), listen="127.0.0.1:0")
        try:
            with LocalStack(options, say) as stack:
                answers = ask_all(stack.address)
                processes = psutil.Process().children(recursive=True)
        except ServiceFailed as error:
            say(f"error: {error}\n{logs(Path(folder))}")
            return 1
    show(answers)
    # Python's resource tracker exits a moment after the child process.
    _, left = psutil.wait_procs(processes, timeout=5)
    return verdict(answers, [f"{each.pid}" for each in left])


def ask_all(address: str) -> list[Generation]:
    """The answers of RUNS to the same question."""
    document = DOCUMENT.read_text(encoding="utf-8")
    content = [{"text": document + "\n\n"}, {"text": QUESTION, "protected": True}]
    answers = []
    with Client(address) as client:
        for run in RUNS:
            say(f"asking: {run.title}")
            messages = [{"role": "user", "content": content}]
            answers.append(client.generate(messages=messages, max_new_tokens=32, deadline_s=300, **run.options))
    return answers


def show(answers: list[Generation]) -> None:
    """The table."""
    console = Console(width=150)
    console.print(f"[bold]{DOCUMENT.name}[/]: {QUESTION}")
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("run", "route", "cache", "answer") else "right")
    for run, answer in zip(RUNS, answers, strict=True):
        table.add_row(run.title, *row(answer))
    console.print(table)
    full, *others = (answer.usage.ttft_ms for answer in answers)
    ratios = (f"{run.title} {ttft / full:.2f}" for run, ttft in zip(RUNS[1:], others, strict=True))
    console.print(f"time to first token against full: {'; '.join(ratios)}")


def row(answer: Generation) -> list[str]:
    """What was applied, and the times."""
    decision, usage = answer.decision, answer.usage
    coverage = decision.coverage if usage.coverage is None else usage.coverage
    counts = (decision.prompt_tokens, decision.kept_tokens, usage.kv_tokens)
    figures = (decision.draft_ms, usage.cached_tokens, usage.target_ttft_ms, usage.ttft_ms)
    return [
        decision.route,
        *(f"{count:,}" for count in counts),
        decision.cache,
        "-" if coverage is None else f"{coverage:.2f}",
        *(f"{figure:,.0f}" for figure in figures),
        answer.text.strip(),
    ]


def verdict(answers: list[Generation], left: list[str]) -> int:
    """Print what went wrong; 1 if anything did."""
    trouble = [f"processes left: {', '.join(left)}"] if left else []
    for run, answer in zip(RUNS, answers, strict=True):
        applied = (answer.decision.route, answer.decision.cache, answer.usage.reused_entry)
        if FACT not in answer.text:
            trouble.append(f"{run.title}: the answer lacks {FACT!r}")
        if applied != run.applied:
            trouble.append(f"{run.title}: {applied} was applied: {answer.decision.detail}")
    for line in trouble:
        say(f"error: {line}")
    return 1 if trouble else 0


def logs(folder: Path) -> str:
    """The end of each service's log."""
    return "\n".join(
        f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in sorted(folder.glob("*.log"))
    )


def say(line: str) -> None:
    """Progress, to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
