"""`presift eval`: every route with every budget against `full`, on prompts of your own or of a suite."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from presift.cli.connection import ConnectionFlags
from presift.cli.evaluation.suites.flags import SuiteFlags
from presift.cli.flags import Tenant, with_flags
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.request import check_writable
from presift.cli.settings import CliSettings

if TYPE_CHECKING:
    from presift.cli.evaluation.session import Evaluated

_INTERRUPTED = 130


@with_flags
def evaluate(
    *,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.jsonl",
            help="one JSON object a line: prompt (text) or messages; optional are id, kind (a name by which prompts "
            "are grouped), max_new_tokens (of this answer), expected (text that the answer must contain, or a list of "
            "texts), choices (one of them is expected), and scorer: contains, contains_any, contains_share, exact or "
            "choice",
        ),
    ] = None,
    suite: SuiteFlags,
    routes: Annotated[
        str,
        typer.Option(
            help="routes to compare with full, separated by commas: spec_pc, spec_kv, spec_kv_pc, and auto, which has "
            "no budget: presift chooses the route, as for a request without route or budget"
        ),
    ] = "auto,spec_pc,spec_kv",
    budgets: Annotated[
        str,
        typer.Option(
            help="budgets of each route, separated by commas: a share of the prompt's tokens (0.25 or 25%), a number "
            "of tokens (512), or default. It is max_kv_tokens on routes that drop KV, max_prompt_tokens on others"
        ),
    ] = "25%,default",
    limit: Annotated[int | None, typer.Option(min=1, help="only the first prompts of the file or suite")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="most tokens of an answer; 256 if unset")] = None,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="seed of intervals, of a suite's prompts, of sampled answers")] = 0,
    compress_above: Annotated[
        int, typer.Option(min=0, help="prompts of up to this many tokens are not compressed; auto keeps its own limit")
    ] = 0,
    concurrency: Annotated[
        int, typer.Option(min=1, help="prompts at a time; above 1 the times are those of a busy service")
    ] = 1,
    results: Annotated[
        Path | None,
        typer.Option(
            help="the file of answers (no prompts), by which the same command continues after an interruption, or its "
            "folder; FILE.results.jsonl, beside FILE, or SUITE.results.jsonl if unset"
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="also write an HTML page to this file; it shows what was kept in the worst cases"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write a JSON file: the tables, and each answer with its score")
    ] = None,
    deadline_s: Annotated[float, typer.Option("--deadline", help="time limit for an answer, seconds")] = 600.0,
    tenant: Tenant = None,
    connection: ConnectionFlags,
) -> None:
    """Compare routes and budgets with full on your own prompts or a suite: right answers, agreement, times, KV held.

    Every prompt is answered by full, by each route with each budget, and by auto without one. Answers are kept in
    --results, and a second run asks only for those that it lacks.
    """
    # Imported here: `presift generate` needs none of it.
    from presift.cli.evaluation import arms, dataset, report, runner, session  # noqa: PLC0415
    from presift.cli.evaluation.suites import prepare  # noqa: PLC0415

    with exit_on_error():
        prepare.check_flags(file, suite)
        results = results_file(file or Path(f"{suite.suite}.jsonl"), results)
        for path in (results, html, json_file):
            check_writable(path)
        compared, settings = arms.arms_of(routes, budgets), CliSettings()
        answers = runner.AnswerSettings(max_new_tokens, temperature, seed, compress_above, deadline_s)
        try:
            if file is None:
                file = asyncio.run(prepare.prepare(suite, connection, settings, tenant, answers, arms=compared))
            found = dataset.read_dataset(file, limit)
            if found.ignored:
                print_stderr(f"ignored keys of {file}: {', '.join(found.ignored)}")
            if found.repeated:
                print_stderr(f"lines of {file} that repeat a prompt: {found.repeated}; each prompt counts once")
            evaluation = session.Evaluation(
                found.examples, compared, answers, results, concurrency, explains=html is not None
            )
            done = asyncio.run(evaluation.run(connection, settings, tenant))
        except KeyboardInterrupt:
            if file is None:
                print_stderr("stopped before any question; the same command begins again")
            else:
                print_stderr(f"stopped; the same command continues with what {results} lacks")
            raise typer.Exit(_INTERRUPTED) from None
        report.show(done.summary, Console())
        write(done, html, json_file)
    if done.summary.missing:
        raise typer.Exit(1)


def results_file(file: Path, results: Path | None) -> Path:
    """The file of answers to the prompts of `file`: as given, in the given folder, or beside it."""
    default = file.with_suffix(".results.jsonl")
    if results is None:
        return default
    return results / default.name if results.is_dir() else results


def write(done: Evaluated, html: Path | None, json_file: Path | None) -> None:
    """Write the page and the JSON file that were asked for."""
    from presift.cli.evaluation import page, report  # noqa: PLC0415

    texts: dict[Path, str] = {}
    if json_file is not None:
        texts[json_file] = json.dumps(report.as_json(done.summary, done.header), ensure_ascii=False) + "\n"
    if html is not None:
        texts[html] = page.page_of(done.summary, done.header, done.explained)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print_stderr(f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB)")
