"""`presift generate`: answer a prompt, in a stream or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer

from presift.cli.connection import ConnectionFlags, connect
from presift.cli.flags import PromptFlags, RequestFlags, RouteName, Tenant, with_flags
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.render.lines import decision_line, usage_line
from presift.cli.render.progress import ReadingProgress
from presift.cli.request import budget_options, form_options, prompt_options
from presift.cli.settings import CliSettings
from presift_client import Client, Decision, ToolCall, Usage
from presift_client.requests import Options


@with_flags
def generate(
    *,
    prompt_flags: PromptFlags,
    route: RouteName = "auto",
    request_flags: RequestFlags,
    max_new_tokens: Annotated[int | None, typer.Option(help="most tokens to generate; 256 if unset")] = None,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 0.0,
    deadline_s: Annotated[
        float | None, typer.Option("--deadline", help="time limit for the whole answer, seconds")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="a file with a JSON schema: the answer is a JSON value that it allows")
    ] = None,
    n: Annotated[
        int,
        typer.Option(
            "--n",
            min=1,
            help="number of answers, one after the other on stdout; they differ if --temperature is above 0",
        ),
    ] = 1,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="let another target continue the answer if its target is lost")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: answer, decision and usage")] = False,
    tenant: Tenant = None,
    connection: ConnectionFlags,
) -> None:
    """Answer a prompt, or a question about documents. Decision and usage are printed to stderr."""
    with exit_on_error():
        options = cast(
            Options,
            {"route": route, "temperature": temperature}
            | ({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})
            | ({} if deadline_s is None else {"deadline_s": deadline_s})
            | ({"migrate": True} if migrate else {})
            | budget_options(request_flags)
            | prompt_options(prompt_flags)
            | form_options(json_schema, n),
        )
        with connect(connection, CliSettings(), tenant) as client:
            if as_json:
                print_json(client, options)
            elif n > 1:
                print_choices(client, options)
            else:
                print_stream(client, options)


def print_stream(client: Client, options: Options) -> None:
    """Print the answer to stdout as it arrives; decision, reasoning and usage to stderr. A terminal shows progress
    before it."""
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
                print(event.reasoning, end="", file=sys.stderr, flush=True)
                print(event.text + calls_text(event.tool_calls), end="", flush=True)


def print_choices(client: Client, options: Options) -> None:
    """Print several answers to stdout, each when all are complete; decision and usages to stderr."""
    answer = client.generate(**options)
    print_stderr(decision_line(answer.decision))
    for choice in answer.choices:
        print(choice.text + calls_text(choice.tool_calls), flush=True)
        print_stderr(usage_line(choice.usage))


def calls_text(calls: Iterable[ToolCall]) -> str:
    """New calls of tools, or the next pieces of their arguments."""
    return "".join(f"\n{call.name} {call.arguments}" if call.name else call.arguments for call in calls)


def print_json(client: Client, options: Options) -> None:
    """Print answer, decision and usage to stdout as one JSON object; `choices` only if there are several."""
    answer = asdict(client.generate(**options))
    if len(answer["choices"]) == 1:
        del answer["choices"]
    print(json.dumps(answer, ensure_ascii=False))
