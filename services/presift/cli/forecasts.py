"""The routes that AUTO chose among, as rows of a table: for `presift route`, and for explanations in either form."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from presift.cli.heat import printable
from presift_client import RouteForecast

# What matters most first: a phone shows no more than half of it at once.
HEADS = ("route", "TTFT ms", "reads", "holds", "draft ms", "target ms", "ms/token", "budget")


def cells(route: RouteForecast) -> list[str]:
    """One for each of HEADS; empty where the route cannot be."""
    costs = (route.ttft_ms, route.read_tokens, route.kv_tokens, route.draft_ms, route.target_ms, route.step_ms)
    numbers = ["" if value is None else f"{value:,.0f}" for value in costs]
    return [printable(route.route), *numbers, "met" if route.is_met else printable(route.why_not)]


def table(routes: Sequence[RouteForecast]) -> Table:
    """For the terminal, the chosen one marked."""
    # Eighty columns, which is what a pipe has, are just enough.
    found = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    found.add_column("", no_wrap=True)
    for head in HEADS[:-1]:  # names and numbers are worth nothing in pieces
        found.add_column(head, no_wrap=True, justify="left" if head == HEADS[0] else "right")
    found.add_column(HEADS[-1], min_width=14)
    for route in routes:
        style = "bold" if route.is_chosen else ""
        # As Text: words of a service are no markup.
        found.add_row("->" if route.is_chosen else "", *(Text(cell) for cell in cells(route)), style=style)
    return found
