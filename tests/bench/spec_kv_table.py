"""The table of `spec_kv_quality`: accuracy by method, capacity and prompt length, from the recorded answers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]

_COLUMNS: dict[str, Callable[[Row], bool]] = {
    "<= 2.3k": lambda row: row["prompt_tokens"] < 2300,
    "3-4k": lambda row: 2300 <= row["prompt_tokens"] < 4500,
    "> 5k": lambda row: row["prompt_tokens"] >= 4500,
    "all": lambda row: True,
    "draft wrong": lambda row: not row["draft_right"],
    "full right": lambda row: bool(row["answers"]["full"]["right"]),
}
_KINDS = ("needle", "key_value", "key_table", "multi_key", "code")


def table(answers: dict[str, Row]) -> str:
    """Markdown: one line per method and capacity; each cell is right answers of prompts."""
    rows = list(answers.values())
    if not rows:
        return "no answers yet"
    columns = _COLUMNS | {kind: lambda row, kind=kind: row["kind"] == kind for kind in _KINDS}
    heads = ["method C", *columns, "worse / better than full", "coverage", "score ms", "publish ms"]
    lines = [heads, ["---"] * len(heads), ["draft alone", *_draft_cells(rows, columns.values()), "", "", "", ""]]
    for method in rows[0]["answers"]:
        cells = [_cell(method, filter(wanted, rows)) for wanted in columns.values()]
        lines.append([method, *cells, *_against_full(method, rows), *_reported(method, rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + _errors(rows)


def _cell(method: str, rows: Iterable[Row]) -> str:
    return _share([bool(row["answers"][method]["right"]) for row in rows])


def _draft_cells(rows: list[Row], wanted: Iterable[Callable[[Row], bool]]) -> list[str]:
    return [_share([bool(row["draft_right"]) for row in rows if each(row)]) for each in wanted]


def _share(right: list[bool]) -> str:
    return f"{sum(right)}/{len(right)} ({sum(right) / len(right):.0%})" if right else "-"


def _against_full(method: str, rows: list[Row]) -> list[str]:
    pairs = [(bool(row["answers"]["full"]["right"]), bool(row["answers"][method]["right"])) for row in rows]
    return ["" if method == "full" else f"{pairs.count((True, False))} / {pairs.count((False, True))}"]


def _reported(method: str, rows: list[Row]) -> list[str]:
    """Mean coverage, and median times of the requests that scored."""
    found = [row["answers"][method] for row in rows]
    coverages = [one["coverage"] for one in found if one.get("coverage") is not None]
    cells = [f"{statistics.mean(coverages):.2f}" if coverages else ""]
    for name in ("score_ms", "publish_ms"):
        times = [one[name] for one in found if one.get(name)]
        cells.append(f"{statistics.median(times):.0f}" if times else "")
    return cells


def _errors(rows: list[Row]) -> str:
    errors = [one["error"] for row in rows for one in row["answers"].values() if "error" in one]
    return f"\n\n{len(errors)} requests failed: {sorted(set(errors))}" if errors else ""
