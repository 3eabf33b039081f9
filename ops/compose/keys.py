"""The secrets of a compose stack. Its service `keys` runs `keys.py FOLDER` in the orchestrator's image:

    make            create what is missing: the service token, the tenants' salt, and a first API key
    show            print the first API key, which callers need
    add TENANT [--admin] [--expires DATE]       print another key; it is not stored and cannot be shown again. An
                    admin key also shows replicas, speeds and the quality of routes (`presift models`)
    list            names of keys with their tenants, and tenants with their limits
    revoke NAME     remove the key of that name
    limit TENANT [--tokens-per-minute N] [--concurrency N]      set its limits; without numbers: the defaults

The orchestrator applies the changes of add, revoke and limit within a second, without a restart.
FOLDER has three parts, each a volume: draft, target and orchestrator mount `inner`, only the orchestrator mounts
`door`, and no service mounts `caller`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.auth.api_keys import digest_of, new_entry, new_key
from presift.orchestrator.api.auth.key_file import load_keys, read_keys

TOKEN, SALT, KEYS, CALLER = "inner/service-token", "door/tenant-salt", "door/api-keys.yaml", "caller/api-key"
_FIRST = "first"

Entry = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 with a line on stderr if something is missing or invalid."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except Exception as error:  # presift's errors quote no secrets
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make(options: argparse.Namespace) -> None:
    """Create what is missing; existing secrets stay, since callers may use them."""
    folder: Path = options.folder
    _write_new(folder / TOKEN, secrets.token_hex(32))
    _write_new(folder / SALT, secrets.token_hex(32))
    if not (folder / KEYS).exists():
        key = new_key()
        _write(folder / CALLER, key)  # first, so that no key is accepted that was never written down
        _write(folder / KEYS, _text([new_entry(key, _FIRST)], {}))
    load_keys(folder / KEYS)
    print(f"secrets are ready in {folder}")


def show(options: argparse.Namespace) -> None:
    """Raises OSError if the first key was revoked."""
    print((options.folder / CALLER).read_text().strip())


def add(options: argparse.Namespace) -> None:
    """Raises PresiftError for an invalid tenant name."""
    keys, tenants = _read(options.folder)
    key = new_key()
    entry = new_entry(key, options.tenant, admin=options.admin, expires=options.expires)
    _replace(options.folder, [*keys, entry], tenants)
    print(key)


def list_(options: argparse.Namespace) -> None:
    """Print names and limits, no secrets."""
    keys, tenants = _read(options.folder)
    for each in keys:
        end = f", until {each['expires']}" if "expires" in each else ""
        print(f"key {each['name']}: tenant {each['tenant']}{', admin' if each.get('admin') else ''}{end}")
    for tenant, limits in tenants.items():
        print(f"tenant {tenant}: {', '.join(f'{name} {value}' for name, value in limits.items())}")


def revoke(options: argparse.Namespace) -> None:
    """Raises InvalidRequest if no key has that name."""
    keys, tenants = _read(options.folder)
    gone = [each for each in keys if each["name"] == options.name]
    if not gone:
        raise InvalidRequest("name", options.name, "the name of a key (see `list`)")
    _replace(options.folder, [each for each in keys if each not in gone], tenants)
    first = options.folder / CALLER
    if first.exists() and digest_of(first.read_text().strip()) == gone[0]["sha256"]:
        first.unlink()  # `show` must not print a revoked key
    print(f"{options.name} is revoked")


def limit(options: argparse.Namespace) -> None:
    """Raises PresiftError for an invalid tenant name or number."""
    keys, tenants = _read(options.folder)
    wanted = {"tokens_per_minute": options.tokens_per_minute, "concurrency": options.concurrency}
    given = {name: value for name, value in wanted.items() if value is not None}
    others = {tenant: limits for tenant, limits in tenants.items() if tenant != options.tenant}
    _replace(options.folder, keys, others | ({options.tenant: given} if given else {}))
    print(f"{options.tenant}: {json.dumps(given) if given else 'default limits'}")


def _read(folder: Path) -> tuple[list[Entry], dict[str, dict[str, int]]]:
    """Keys, and limits by tenant. Raises PresiftError for an invalid file."""
    load_keys(folder / KEYS)
    document = yaml.safe_load((folder / KEYS).read_text()) or {}
    return document.get("keys", []), document.get("tenants", {})


def _replace(folder: Path, keys: list[Entry], tenants: dict[str, dict[str, int]]) -> None:
    """Raises PresiftError, and keeps the old file, if the orchestrator would refuse the new one."""
    text = _text(keys, tenants)
    read_keys(text.encode(), (folder / KEYS).name)
    _write(folder / KEYS, text)


def _text(keys: list[Entry], tenants: dict[str, dict[str, int]]) -> str:
    # JSON is valid YAML and leaves no room for misinterpretation. Dates become text, which is read as a date too.
    lines = ["keys:" if keys else "keys: []", *(f"  - {json.dumps(each, default=str)}" for each in keys)]
    return "\n".join([*lines, f"tenants: {json.dumps(tenants)}", ""])


def _write_new(path: Path, text: str) -> None:
    if not path.exists():
        _write(path, text)


def _write(path: Path, text: str) -> None:
    """Write atomically, readable by this user only."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text if text.endswith("\n") else f"{text}\n")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keys", description="The secrets of a compose stack.")
    parser.add_argument("folder", type=Path)
    commands = parser.add_subparsers(required=True)
    parsers = {}
    for run, text in _COMMANDS.items():
        name = run.__name__.rstrip("_")
        parsers[name] = commands.add_parser(name, help=text)
        parsers[name].set_defaults(run=run)
    for name in ("add", "limit"):
        parsers[name].add_argument("tenant", help="1-64 of A-Z a-z 0-9 . _ -")
    parsers["add"].add_argument("--admin", action="store_true", help="the key shows the state of the whole service")
    parsers["add"].add_argument(
        "--expires", type=date.fromisoformat, metavar="DATE", help="the last day (UTC) of the key; no end if unset"
    )
    parsers["revoke"].add_argument("name", help="name of a key (see `list`)")
    for flag in ("--tokens-per-minute", "--concurrency"):
        parsers["limit"].add_argument(flag, type=int, help="1 or more; the default limit if unset")
    return parser


_COMMANDS = {
    make: "create missing secrets",
    show: "print the first key",
    add: "create and print another key",
    list_: "list names of keys and limits of tenants",
    revoke: "remove a key",
    limit: "set a tenant's limits",
}


if __name__ == "__main__":
    sys.exit(main())
