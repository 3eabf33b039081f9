"""`presift generate`: answer a prompt, in a stream or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, cast

import typer

from presift.cli.connection import ConnectionFlags, connect
from presift.cli.flags import PromptFlags, RequestFlags, RouteName, Tenant, with_flags
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.render.lines import decision_line, usage_line
from presift.cli.render.progress import ReadingProgress
from presift.cli.request import budget_options, prompt_options
from presift.cli.settings import CliSettings
from presift_client import Client, Decision, Usage
from presift_client.requests import Options


@with_flags
def generate(
    *,
    prompt_flags: PromptFlags,
    route: RouteName = "auto",
    request_flags: RequestFlags,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens to generate")] = 256,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 0.0,
    deadline_s: Annotated[
        float | None, typer.Option("--deadline", help="time limit for the whole answer, seconds")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: answer, decision and usage")] = False,
    tenant: Tenant = None,
    connection: ConnectionFlags,
) -> None:
    """Answer a prompt, or a question about documents. Decision and usage are printed to stderr."""
    with exit_on_error():
        options = cast(
            Options,
            {"route": route, "max_new_tokens": max_new_tokens, "temperature": temperature}
            | ({} if deadline_s is None else {"deadline_s": deadline_s})
            | budget_options(request_flags)
            | prompt_options(prompt_flags),
        )
        with connect(connection, CliSettings(), tenant) as client:
            print_json(client, options) if as_json else print_stream(client, options)


def print_stream(client: Client, options: Options) -> None:
    """Print the answer to stdout as it arrives, decision and usage to stderr. A terminal shows progress before it."""
    with ReadingProgress() as progress:
        for event in client.stream(**options):
            if isinstance(event, Decision):
                progress.print(decision_line(event))
                progress.show(event)
                continue
            progress.stop()
            if isinstance(event, Usage):
                print(flush=True)
                print_stderr(usage_line(event))
            else:
                print(event.text, end="", flush=True)


def print_json(client: Client, options: Options) -> None:
    """Print answer, decision and usage to stdout as one JSON object."""
    print(json.dumps(asdict(client.generate(**options)), ensure_ascii=False))
