"""`presift keys new`: an API key, shown once, and its entry for the orchestrator's key file."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated

import typer

from presift.cli.flags import AsJson
from presift.cli.render.console import fail

keys = typer.Typer(help="Create API keys for callers of an orchestrator.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Create API keys for callers of an orchestrator."""


@keys.command()
def new(
    *,
    tenant: Annotated[str, typer.Option(help="the tenant that the key belongs to: 1-64 of A-Z a-z 0-9 . _ -")],
    name: Annotated[str | None, typer.Option(help="a name to find and revoke the key by; generated if unset")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="the key also shows replicas, speeds and the quality of routes")
    ] = False,
    expires: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="the last day (UTC) on which the key is accepted; no end if unset"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a new API key and its entry for --api-keys-file. The key is stored nowhere and is shown only once."""
    # Imported here: `presift generate` needs none of it.
    from presift.orchestrator.api.auth.api_keys import new_entry, new_key  # noqa: PLC0415
    from presift.orchestrator.domain.request import TENANT_PATTERN  # noqa: PLC0415

    key = new_key()
    entry = new_entry(key, tenant, name, admin=admin, expires=None if expires is None else expires.date())
    for field in ("tenant", "name"):
        if re.fullmatch(TENANT_PATTERN, str(entry[field])) is None:
            fail(f"--{field} must be 1-64 of A-Z a-z 0-9 . _ -")
    if as_json:
        print(json.dumps({"key": key, "entry": entry}))
        return
    print(f"key (give it to {tenant}; it is not shown again):\n{key}\n")
    # JSON is also YAML, and YAML cannot misread a quoted value.
    print(f"entry for the list `keys:` in the file of --api-keys-file:\n  - {json.dumps(entry)}")
