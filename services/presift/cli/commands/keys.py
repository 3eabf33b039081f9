"""`presift keys new`: an API key, shown once, and the entry by which the orchestrator knows it."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from presift.cli.render.console import fail

keys = typer.Typer(help="API keys of an orchestrator's callers.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """API keys of an orchestrator's callers."""


@keys.command()
def new(
    *,
    tenant: Annotated[str, typer.Option(help="whose key it is: 1-64 of A-Z a-z 0-9 . _ -")],
    name: Annotated[str | None, typer.Option(help="to find and revoke it by; made up if unset")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object: key, entry")] = False,
) -> None:
    """Print a new key and the entry for --api-keys-file. The key is kept nowhere: this is the one time it is shown."""
    # Imported here: `presift generate` needs none of it.
    from presift.orchestrator.api.auth.api_keys import digest_of, new_key  # noqa: PLC0415
    from presift.orchestrator.domain.request import TENANT_PATTERN  # noqa: PLC0415

    key = new_key()
    digest = digest_of(key)
    entry = {"name": name or f"{tenant[:55]}-{digest[:8]}", "tenant": tenant, "sha256": digest}
    for what in ("tenant", "name"):
        if re.fullmatch(TENANT_PATTERN, entry[what]) is None:
            fail(f"--{what} must be 1-64 of A-Z a-z 0-9 . _ -")
    if as_json:
        print(json.dumps({"key": key, "entry": entry}))
        return
    print(f"key (give it to {tenant}; it is not shown again):\n{key}\n")
    # JSON is YAML: nothing in it can be read as something else.
    print(f"entry, under `keys:` in the file of --api-keys-file:\n  - {json.dumps(entry)}")
