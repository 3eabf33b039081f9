"""`presift models`: the demo models on this machine, and the models and replicas of an orchestrator."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from presift.cli import demo_models
from presift.cli.connection import ConnectionFlags, connect
from presift.cli.flags import AsJson, with_flags
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.render.lines import replica_line
from presift.cli.settings import CliSettings
from presift_client import Client, Info, PermissionDenied, PresiftError, Unauthenticated


@with_flags
def models(
    *,
    ensure: Annotated[
        list[str] | None, typer.Option(help="download and convert this demo model unless it is there; repeatable")
    ] = None,
    connection: ConnectionFlags,
    as_json: AsJson = False,
) -> None:
    """List the demo models and, if an orchestrator is running, its models and replicas."""
    with exit_on_error():
        settings = CliSettings()
        for name in ensure or []:
            demo_models.ensure_model(name, settings.home, print_stderr)
        local = local_models(settings.home)
        served = served_models(connect(connection, settings))
    if as_json:
        print(json.dumps({"local": local, "served": None if served is None else asdict(served)}))
    else:
        Console().print(models_table(local, served))


def local_models(home: Path) -> dict[str, str | None]:
    """Every demo model with its folder, None if it is not downloaded; warns if demo models are unavailable."""
    try:
        found = demo_models.list_models(home)
    except demo_models.DemoModelsMissing as error:
        print_stderr(f"warning: {error}")
        return {}
    return {name: None if folder is None else str(folder) for name, folder in found.items()}


def served_models(client: Client) -> Info | None:
    """What an orchestrator reports, None if none answers. Raises PresiftError if access is denied. Closes `client`."""
    with client:
        try:
            return client.info(deadline_s=1.0)
        except (Unauthenticated, PermissionDenied):
            raise
        except PresiftError:
            return None


def models_table(local: dict[str, str | None], served: Info | None) -> Table:
    """Demo models and their folders, then the orchestrator's models and replicas."""
    table = Table("model", "folder")
    for name, folder in local.items():
        table.add_row(name, folder or f"not downloaded: run presift models --ensure {name}")
    if served is not None:
        table.add_row("served as target", served.target.id)
        table.add_row("target's engine", served.engine or "unknown")
        table.add_row("served as draft", served.draft.id if served.draft else "none")
        if served.draft:
            table.add_row("draft scores by", "its calibrated heads" if served.draft.head_profile else "all heads")
        table.add_row("parser of tool calls", served.tool_call_parser or "none")
        table.add_row("parser of reasoning", served.reasoning_parser or "none")
        table.add_row("grammars", "yes" if served.grammars else "no")
        if served.cache_unavailable:
            table.add_row("cache", "does not answer: every prompt is scored again")
        if served.restricted:
            table.add_row("replicas", "shown only to an admin key: set PRESIFT_API_KEY or --api-key-file to one")
        for replica in served.replicas:
            table.add_row(f"{replica.role} replica", replica_line(replica))
    return table
