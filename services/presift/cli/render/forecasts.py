"""The routes that AUTO compared, as rows of a table: for `presift route` and for explanations."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from presift.cli.render.heat import printable
from presift_client import RouteForecast

# The most important columns come first, because a phone shows only half of them at once.
HEADINGS = ("route", "TTFT ms", "read", "KV held", "draft ms", "target ms", "ms/token", "budget")
_MARK_WIDTH, _MIN_REASON_WIDTH = 3, 14
_NOT_MET = "not met"


def table_row(route: RouteForecast) -> list[str]:
    """One cell for each of HEADINGS; costs are empty if the route is impossible."""
    costs = (route.ttft_ms, route.read_tokens, route.kv_tokens, route.draft_ms, route.target_ms, route.step_ms)
    numbers = ["" if value is None else f"{value:,.0f}" for value in costs]
    return [printable(route.route), *numbers, "met" if route.is_met else printable(route.why_not)]


def show(routes: Sequence[RouteForecast], console: Console) -> None:
    """Print the table, with the chosen route marked. Names and numbers are never cut: if the console is too narrow for
    the reasons, they are printed below the table, and lines may be longer than the console is wide."""
    rows = [table_row(route) for route in routes]
    columns = zip(HEADINGS[:-1], *(row[:-1] for row in rows), strict=True)
    width = _MARK_WIDTH + sum(1 + max(map(len, column)) for column in columns)
    reason_width = max(_MIN_REASON_WIDTH, *(len(word) for row in rows for word in row[-1].split()), 0)
    has_room = console.width - width >= reason_width
    reasons = [row[-1] if has_room or route.is_met else _NOT_MET for route, row in zip(routes, rows, strict=True)]
    table = _table(routes, rows, reasons)
    table.width = None if has_room else max(console.width, width + len(_NOT_MET))
    console.print(table, crop=False)
    for route in routes if not has_room else ():
        if not route.is_met:
            console.print(Text(f"{printable(route.route)}: {printable(route.why_not)}"), highlight=False)


def _table(routes: Sequence[RouteForecast], rows: Sequence[list[str]], reasons: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in HEADINGS[:-1]:
        table.add_column(heading, no_wrap=True, justify="left" if heading == HEADINGS[0] else "right")
    table.add_column(HEADINGS[-1])
    for route, row, reason in zip(routes, rows, reasons, strict=True):
        style = "bold" if route.is_chosen else ""
        # As Text, so that a service's words are never read as markup.
        cells = (Text(cell) for cell in (*row[:-1], reason))
        table.add_row("->" if route.is_chosen else "", *cells, style=style)
    return table
