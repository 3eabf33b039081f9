"""The command `presift`: a list of its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from presift.cli.commands.calibrate_draft import calibrate_draft
from presift.cli.commands.evaluate import evaluate
from presift.cli.commands.explain import explain
from presift.cli.commands.generate import generate
from presift.cli.commands.keys import keys
from presift.cli.commands.models import models
from presift.cli.commands.plan import plan
from presift.cli.commands.route import route
from presift.cli.commands.up import up
from presift.cli.entry import version

app = typer.Typer(
    help="presift serves long prompts cheaply: a small draft model finds what matters, "
    "and the large target model keeps only that.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(up)
app.command()(generate)
app.command()(explain)
app.command("eval")(evaluate)
app.command()(models)
app.command()(route)
app.command()(plan)
app.command()(calibrate_draft)
app.add_typer(keys, name="keys")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"presift {version()}")
        raise typer.Exit


@app.callback()
def options(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options that belong to no command."""
