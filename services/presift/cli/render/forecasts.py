"""The routes that AUTO chose among, as rows of a table: for `presift route`, and for explanations in either form."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from presift.cli.render.heat import printable
from presift_client import RouteForecast

# What matters most first: a phone shows no more than half of it at once.
HEADS = ("route", "TTFT ms", "reads", "holds", "draft ms", "target ms", "ms/token", "budget")
# Columns: of the mark, and the fewest in which a reason is read with ease.
_MARK, _LEAST_REASON = 3, 14
_BELOW = "not met"


def cells(route: RouteForecast) -> list[str]:
    """One for each of HEADS; empty where the route cannot be."""
    costs = (route.ttft_ms, route.read_tokens, route.kv_tokens, route.draft_ms, route.target_ms, route.step_ms)
    numbers = ["" if value is None else f"{value:,.0f}" for value in costs]
    return [printable(route.route), *numbers, "met" if route.is_met else printable(route.why_not)]


def show(routes: Sequence[RouteForecast], console: Console) -> None:
    """To the terminal, the chosen one marked. Nothing is lost where it is narrow: names and numbers are worth nothing
    in pieces, so reasons without room beside them stand below, and if need be lines are longer than the terminal."""
    rows = [cells(route) for route in routes]
    columns = zip(HEADS[:-1], *(row[:-1] for row in rows), strict=True)
    taken = _MARK + sum(1 + max(map(len, column)) for column in columns)
    least = max(_LEAST_REASON, *(len(word) for row in rows for word in row[-1].split()), 0)
    has_room = console.width - taken >= least
    reasons = [row[-1] if has_room or route.is_met else _BELOW for route, row in zip(routes, rows, strict=True)]
    table = _table(routes, rows, reasons)
    table.width = None if has_room else max(console.width, taken + len(_BELOW))
    console.print(table, crop=False)
    for route in routes if not has_room else ():
        if not route.is_met:
            console.print(Text(f"{printable(route.route)}: {printable(route.why_not)}"), highlight=False)


def _table(routes: Sequence[RouteForecast], rows: Sequence[list[str]], reasons: Sequence[str]) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    found.add_column("", no_wrap=True)
    for head in HEADS[:-1]:
        found.add_column(head, no_wrap=True, justify="left" if head == HEADS[0] else "right")
    found.add_column(HEADS[-1])
    for route, row, reason in zip(routes, rows, reasons, strict=True):
        style = "bold" if route.is_chosen else ""
        # As Text: words of a service are no markup.
        found.add_row("->" if route.is_chosen else "", *(Text(cell) for cell in (*row[:-1], reason)), style=style)
    return found
