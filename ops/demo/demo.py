"""The main job: one question about a real document, three times over gRPC: in full, compressed, compressed from the
cache. Exits non-zero if an answer lacks the fact or a process is left behind.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from presift.cli.settings import CliSettings
from presift.cli.stack import LocalStack, ServiceFailed, StackOptions
from presift.models.fetch import list_models
from presift_client import Client, Generation

DOCUMENT = Path(__file__).with_name("tz-news.txt")
QUESTION = "On which date did Miquelon adopt standard time in 1911? Answer in one short sentence."
FACT = "June 15"
CAPACITY = 512
HEADINGS = (
    *("run", "route", "prompt", "kept", "cache", "coverage"),
    *("draft ms", "KV reused", "target TTFT ms", "TTFT ms", "answer"),
)
RUNS = (("full", "full"), ("spec_pc, cold", "spec_pc"), ("spec_pc, cached", "spec_pc"))


def main() -> int:
    """0 if all three answers hold the fact and nothing is left running."""
    home = CliSettings().home
    ready = list_models(home)
    draft, target = (ready[name] for name in ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"))
    if draft is None or target is None:
        say("the demo models are not here: run make demo-models")
        return 1
    with tempfile.TemporaryDirectory(prefix="presift-demo-") as folder:
        options = StackOptions(str(draft), str(target), str(target), Path(folder), listen="127.0.0.1:0")
        try:
            with LocalStack(options, say) as stack:
                answers = ask(stack.address)
                processes = psutil.Process().children(recursive=True)
        except ServiceFailed as error:
            say(f"error: {error}\n{logs(Path(folder))}")
            return 1
    show(answers)
    # Python's own helper of a child process ends a moment after it.
    _, left = psutil.wait_procs(processes, timeout=5)
    return verdict(answers, [f"{each.pid}" for each in left])


def ask(address: str) -> list[Generation]:
    """The same question under each of RUNS."""
    document = DOCUMENT.read_text(encoding="utf-8")
    content = [{"text": document + "\n\n"}, {"text": QUESTION, "protected": True}]
    answers = []
    with Client(address) as client:
        for title, route in RUNS:
            say(f"asking: {title}")
            answers.append(
                client.generate(
                    messages=[{"role": "user", "content": content}],
                    route=route,
                    max_prompt_tokens=CAPACITY if route != "full" else 1 << 20,
                    max_new_tokens=32,
                    deadline_s=300,
                )
            )
    return answers


def show(answers: list[Generation]) -> None:
    """The table."""
    console = Console(width=150)
    console.print(f"[bold]{DOCUMENT.name}[/]: {QUESTION}")
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("run", "route", "cache", "answer") else "right")
    for (title, _), answer in zip(RUNS, answers, strict=True):
        decision, usage = answer.decision, answer.usage
        coverage = "-" if decision.coverage is None else f"{decision.coverage:.2f}"
        figures = (decision.draft_ms, usage.cached_tokens, usage.target_ttft_ms, usage.ttft_ms)
        times = (f"{figure:,.0f}" for figure in figures)
        counts = (f"{decision.prompt_tokens:,}", f"{decision.kept_tokens:,}")
        table.add_row(title, decision.route, *counts, decision.cache, coverage, *times, answer.text.strip())
    console.print(table)
    full, cold, cached = (answer.usage.ttft_ms for answer in answers)
    console.print(f"time to first token against full: cold {cold / full:.2f}, from the cache {cached / full:.2f}")


def verdict(answers: list[Generation], left: list[str]) -> int:
    """What went wrong, if anything did."""
    wrong = [title for (title, _), answer in zip(RUNS, answers, strict=True) if FACT not in answer.text]
    applied = [(answer.decision.route, answer.decision.cache) for answer in answers]
    if wrong:
        say(f"error: no {FACT!r} in the answer of: {', '.join(wrong)}")
    if applied != [("full", "not_used"), ("spec_pc", "miss"), ("spec_pc", "hit")]:
        say(f"error: routes and cache were {applied}: {answers[1].decision.detail}")
        return 1
    if left:
        say(f"error: left behind: {', '.join(left)}")
    return 1 if wrong or left else 0


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
