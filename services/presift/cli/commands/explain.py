"""`presift explain`: what would be kept of a prompt and why, in the terminal, as a page or as JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from presift.cli.connection import ConnectionFlags, connect
from presift.cli.flags import PromptFlags, RequestFlags, RouteName, Tenant, with_flags
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.render.lines import explanation_lines
from presift.cli.request import budget_options, check_writable, prompt_options
from presift.cli.settings import CliSettings
from presift_client import Explanation
from presift_client.requests import ExplainOptions


@with_flags
def explain(
    *,
    prompt_flags: PromptFlags,
    route: RouteName = "auto",
    request_flags: RequestFlags,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="length of the answer to plan for; nothing is generated, but limits and predictions need it"),
    ] = None,
    kv_map: Annotated[
        bool, typer.Option(help="on routes that drop KV, have the target read the prompt and report which KV it keeps")
    ] = True,
    html: Annotated[Path | None, typer.Option(help="write an HTML page to this file instead of the terminal")] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="print one JSON object: decision, routes, text, and what happens to each token"),
    ] = False,
    deadline_s: Annotated[float | None, typer.Option("--deadline", help="time limit, seconds")] = None,
    tenant: Tenant = None,
    connection: ConnectionFlags,
) -> None:
    """Show which parts of a prompt would be kept or dropped, and how important the draft finds them."""
    with exit_on_error():
        check_writable(html)
        if as_json and html is not None:
            raise ValueError("give either --json or --html")
        optional = {"max_new_tokens": max_new_tokens, "deadline_s": deadline_s}
        options = cast(
            ExplainOptions,
            {"route": route, "include_kv_mask": kv_map, "span_per_token": True}
            | {name: value for name, value in optional.items() if value is not None}
            | budget_options(request_flags)
            | prompt_options(prompt_flags),
        )
        with connect(connection, CliSettings(), tenant) as client:
            explanation = client.explain(**options)
        print(as_text(explanation)) if as_json else show(explanation, html)


def as_text(explanation: Explanation) -> str:
    """The explanation as one JSON object, with the bits of the KV mask in base64."""
    return json.dumps(asdict(explanation), ensure_ascii=False, default=lambda bits: base64.b64encode(bits).decode())


def show(explanation: Explanation, html: Path | None) -> None:
    """Show the explanation in the terminal, or write it to a page."""
    # Imported here: `presift generate` needs neither.
    from presift.cli.render import page, terminal  # noqa: PLC0415

    if html is None:
        terminal.show(explanation, Console())
        return
    html.write_text(page.page_of(explanation), encoding="utf-8", newline="\n")
    for line in explanation_lines(explanation):
        print_stderr(line)
    print_stderr(f"wrote {html} ({html.stat().st_size / 1024:.0f} KiB)")
