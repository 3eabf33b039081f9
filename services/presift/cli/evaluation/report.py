"""A summary as tables in the terminal and as JSON. Both outputs name the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from presift.cli.evaluation.results import Answer, Failure, Result
from presift.cli.evaluation.statistics import Estimate
from presift.cli.evaluation.summary import ALL, Outcome, Row, Summary, Table
from presift.cli.render.heat import printable

# Columns: heading, and a row's cell.
Columns = dict[str, Callable[[Row], str]]

_ANSWER_CHARACTERS = 60


def percent(value: float | None) -> str:
    """A share for people; empty for None."""
    return "" if value is None else f"{100 * value:.0f}%"


def interval(estimate: Estimate | None) -> str:
    """A share with its 95 % interval, for people; empty for None."""
    return "" if estimate is None else f"{percent(estimate.value)} ({percent(estimate.low)}-{percent(estimate.high)})"


def number(value: float | None) -> str:
    """A count or a time for people; empty for None."""
    return "" if value is None else f"{value:,.1f}" if value < 10 and value % 1 else f"{value:,.0f}"


QUALITY: Columns = {
    "arm": lambda row: row.arm,
    "answers": lambda row: str(row.answers),
    "right (95%)": lambda row: interval(row.right),
    "of full (95%)": lambda row: interval(row.of_full),
    "won": lambda row: number(row.wins),
    "lost": lambda row: number(row.losses),
    "agreement (95%)": lambda row: interval(row.agreement),
    "facts": lambda row: percent(row.facts),
    "identical": lambda row: percent(row.identical),
}
COST: Columns = {
    "arm": lambda row: row.arm,
    "TTFT ms (answers)": lambda row: f"{number(row.ttft_ms)} ({row.first_readings})" if row.first_readings else "",
    "reread TTFT ms": lambda row: number(row.reread_ttft_ms),
    "ms/token": lambda row: number(row.token_ms),
    "KV held": lambda row: number(row.kv_tokens),
    "read": lambda row: number(row.read_tokens),
    "of prompt": lambda row: percent(row.read_share),
}
LEGEND = (
    "won, lost: answers that are better or worse than those of full. agreement: with the answers of full, as the "
    "quality guard measures it; facts: the share of full's facts that are in the answer. Times and tokens are medians. "
    "TTFT: time to first token of the answers whose prompt no arm had read by the same models before, and their "
    "number; reread: of the others, which find the prompt in caches."
)


def cells(columns: Columns, row: Row) -> list[str]:
    """The row's cells, one for each column."""
    return [cell(row) for cell in columns.values()]


def heading(table: Table) -> str:
    """What the table is about."""
    lengths = "all prompts" if table.lengths == ALL else f"prompts of {table.lengths} tokens"
    return f"{f'prompts of kind {printable(table.kind)}' if table.kind else lengths}: {table.prompts}"


def case_line(case: Outcome) -> str:
    """The example, the arm, how its answer compares with that of `full`, and the tokens that were read and held."""
    agreed = "" if case.agreement is None else f"agreement {case.agreement.degree:.2f}"
    lost = "lost" if case.gain is not None else "differs"
    return f"{case.example.id}, {case.arm.name}: {lost}, {agreed}{_tokens(case.result)}"


def show(summary: Summary, console: Console) -> None:
    """Print both tables for all prompts and each length, the worst cases, and what the numbers cannot show."""
    for table in summary.tables:
        for columns in (QUALITY, COST):
            _print_table(heading(table) if columns is QUALITY else "", columns, table.rows, console)
    _print_line(LEGEND, console)
    for number_, case in enumerate(summary.cases, 1):
        _print_line(("\nworst cases\n" if number_ == 1 else "") + case_line(case), console)
        for name, result in (("full", case.full), (case.arm.name, case.result)):
            _print_line(f"    {name}: {_short(result)}", console)
    for note in summary.notes:
        _print_line(f"note: {note}", console)


def as_json(summary: Summary, header: Mapping[str, str]) -> dict[str, Any]:
    """`header` (what the summary is about), tables, notes, and one object for each answer. Times are in milliseconds,
    counts in tokens."""
    return {
        "header": dict(header),
        "tables": [asdict(table) for table in summary.tables],
        "notes": list(summary.notes),
        "missing": summary.missing,
        "answers": [_outcome(outcome) for outcome in summary.outcomes],
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    compared = outcome.agreement
    agreed = {} if compared is None else asdict(compared) | {"degree": compared.degree}
    kind = "error" if isinstance(outcome.result, Failure) else "answer"
    return {
        "id": outcome.example.id,
        "arm": outcome.arm.name,
        "lengths": None if outcome.band is None else str(outcome.band),
        "score": outcome.score,
        "full_score": outcome.full_score,
        "agreement": agreed or None,
        kind: asdict(outcome.result),
    }


def _print_table(title: str, columns: Columns, rows: Sequence[Row], console: Console) -> None:
    """Numbers are never cut: lines may be longer than the console is wide. Columns without numbers are left out."""
    shown = {name: cell for name, cell in columns.items() if any(map(cell, rows))}
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(shown):
        table.add_column(name, no_wrap=True, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, cells(shown, row)))
    if title:
        _print_line(title, console)
    table.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.print(table, "", crop=False)


def _print_line(line: str, console: Console) -> None:
    console.print(Text(line), soft_wrap=True, highlight=False)


def _tokens(result: Result) -> str:
    if not isinstance(result, Answer):
        return ""
    return f", {result.read_tokens:,} of {result.prompt_tokens:,} tokens read, {result.kv_tokens:,} held"


def _short(result: Result | None) -> str:
    text = printable(" ".join(result.text.split())) if isinstance(result, Answer) else ""
    return text if len(text) <= _ANSWER_CHARACTERS else f"{text[:_ANSWER_CHARACTERS]}..."
