"""The secrets of a compose stack, made once. Its service `keys` runs `keys.py FOLDER` in the orchestrator's image:

    make            what is not there yet: the service token, the tenants' salt, and a first API key
    show            that API key (it is the one secret that people need)
    add TENANT      another key, shown this once; the orchestrator takes it within a second, without a restart

FOLDER has three parts, each a volume of its own: `inner` is mounted in draft, target and orchestrator, `door` in the
orchestrator alone, `caller` in nothing that serves.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from pathlib import Path

import yaml

from presift.orchestrator.access.api_keys import digest_of, new_key
from presift.orchestrator.access.key_file import load_keys, read_keys

TOKEN, SALT, KEYS, CALLER = "inner/service-token", "door/tenant-salt", "door/api-keys.yaml", "caller/api-key"
_FIRST = "first"


def main(arguments: list[str] | None = None) -> int:
    """0; 1 with a line on stderr where something is missing or cannot be."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except Exception as error:  # presift's own errors quote no secret
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make(options: argparse.Namespace) -> None:
    """Nothing that is there is changed: others may hold it."""
    folder: Path = options.folder
    _write_new(folder / TOKEN, secrets.token_hex(32))
    _write_new(folder / SALT, secrets.token_hex(32))
    if not (folder / KEYS).exists():
        key = new_key()
        _write(folder / CALLER, key)  # first: a key that nobody knows must not be in force
        _write(folder / KEYS, _text([_entry(key, _FIRST)], {}))
    load_keys(folder / KEYS)
    print(f"secrets are ready in {folder}")


def show(options: argparse.Namespace) -> None:
    """Raises OSError where there is none."""
    print((options.folder / CALLER).read_text().strip())


def add(options: argparse.Namespace) -> None:
    """Raises PresiftError for a tenant's name that cannot be."""
    file = options.folder / KEYS
    document = yaml.safe_load(file.read_text()) or {}
    key = new_key()
    text = _text([*document.get("keys", []), _entry(key, options.tenant)], document.get("tenants", {}))
    read_keys(text.encode(), file.name)
    _write(file, text)
    print(key)


def _entry(key: str, tenant: str) -> dict[str, str]:
    digest = digest_of(key)
    return {"name": f"{tenant[:55]}-{digest[:8]}", "tenant": tenant, "sha256": digest}


def _text(keys: list[dict[str, str]], tenants: dict[str, object]) -> str:
    # JSON is YAML: nothing in it can be read as something else.
    lines = ["keys:", *(f"  - {json.dumps(each)}" for each in keys)]
    return "\n".join([*lines, f"tenants: {json.dumps(tenants)}", ""])


def _write_new(path: Path, text: str) -> None:
    if not path.exists():
        _write(path, text)


def _write(path: Path, text: str) -> None:
    """Whole or not at all, for our own user alone."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text if text.endswith("\n") else f"{text}\n")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keys", description="The secrets of a compose stack.")
    parser.add_argument("folder", type=Path)
    commands = parser.add_subparsers(required=True)
    for run, text in ((make, "make what is missing"), (show, "print the first key"), (add, "print another key")):
        command = commands.add_parser(run.__name__, help=text)
        command.set_defaults(run=run)
        if run is add:
            command.add_argument("tenant", help="whose it is: 1-64 of A-Z a-z 0-9 . _ -")
    return parser


if __name__ == "__main__":
    sys.exit(main())
