"""The secrets of a compose stack, made once. Its service `keys` runs `keys.py FOLDER` in the orchestrator's image:

    make            what is not there yet: the service token, the tenants' salt, and a first API key
    show            that API key (it is the one secret that people need)
    add TENANT      another key, shown this once
    list            names of keys with their tenants, and tenants with their limits
    revoke NAME     the key of that name opens nothing from now on
    limit TENANT [--tokens-per-minute N] [--concurrency N]      these limits and no others; neither: as all tenants

The orchestrator takes what add, revoke and limit change within a second, without a restart.
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

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.auth.api_keys import digest_of, new_key
from presift.orchestrator.api.auth.key_file import load_keys, read_keys

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
    """Raises OSError where there is none, for it was revoked."""
    print((options.folder / CALLER).read_text().strip())


def add(options: argparse.Namespace) -> None:
    """Raises PresiftError for a tenant's name that cannot be."""
    keys, tenants = _read(options.folder)
    key = new_key()
    _replace(options.folder, [*keys, _entry(key, options.tenant)], tenants)
    print(key)


def list_(options: argparse.Namespace) -> None:
    """No secret is among them."""
    keys, tenants = _read(options.folder)
    for each in keys:
        print(f"key {each['name']}: tenant {each['tenant']}")
    for tenant, limits in tenants.items():
        print(f"tenant {tenant}: {', '.join(f'{name} {value}' for name, value in limits.items())}")


def revoke(options: argparse.Namespace) -> None:
    """Raises InvalidRequest where no key has that name."""
    keys, tenants = _read(options.folder)
    gone = [each for each in keys if each["name"] == options.name]
    if not gone:
        raise InvalidRequest("name", options.name, "the name of a key; `list` tells them")
    _replace(options.folder, [each for each in keys if each not in gone], tenants)
    first = options.folder / CALLER
    if first.exists() and digest_of(first.read_text().strip()) == gone[0]["sha256"]:
        first.unlink()  # `show` must not give out what opens nothing
    print(f"{options.name} is revoked")


def limit(options: argparse.Namespace) -> None:
    """Raises PresiftError for a tenant's name or a number that cannot be."""
    keys, tenants = _read(options.folder)
    wanted = {"tokens_per_minute": options.tokens_per_minute, "concurrency": options.concurrency}
    given = {name: value for name, value in wanted.items() if value is not None}
    others = {tenant: limits for tenant, limits in tenants.items() if tenant != options.tenant}
    _replace(options.folder, keys, others | ({options.tenant: given} if given else {}))
    print(f"{options.tenant}: {json.dumps(given) if given else 'no limits of its own'}")


def _read(folder: Path) -> tuple[list[dict[str, str]], dict[str, dict[str, int]]]:
    """Keys, and limits by tenant, as they stand in the file. Raises PresiftError where it is none."""
    load_keys(folder / KEYS)
    document = yaml.safe_load((folder / KEYS).read_text()) or {}
    return document.get("keys", []), document.get("tenants", {})


def _replace(folder: Path, keys: list[dict[str, str]], tenants: dict[str, dict[str, int]]) -> None:
    """Raises PresiftError, and leaves what is, if the orchestrator would not take it."""
    text = _text(keys, tenants)
    read_keys(text.encode(), (folder / KEYS).name)
    _write(folder / KEYS, text)


def _entry(key: str, tenant: str) -> dict[str, str]:
    digest = digest_of(key)
    return {"name": f"{tenant[:55]}-{digest[:8]}", "tenant": tenant, "sha256": digest}


def _text(keys: list[dict[str, str]], tenants: dict[str, dict[str, int]]) -> str:
    # JSON is YAML: nothing in it can be read as something else.
    lines = ["keys:" if keys else "keys: []", *(f"  - {json.dumps(each)}" for each in keys)]
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
    parsers = {}
    for run, text in _COMMANDS.items():
        name = run.__name__.rstrip("_")
        parsers[name] = commands.add_parser(name, help=text)
        parsers[name].set_defaults(run=run)
    for name in ("add", "limit"):
        parsers[name].add_argument("tenant", help="1-64 of A-Z a-z 0-9 . _ -")
    parsers["revoke"].add_argument("name", help="of a key, as `list` tells it")
    for flag in ("--tokens-per-minute", "--concurrency"):
        parsers["limit"].add_argument(flag, type=int, help="1 or more; not given: none of its own")
    return parser


_COMMANDS = {
    make: "make what is missing",
    show: "print the first key",
    add: "print another key",
    list_: "names of keys, limits of tenants",
    revoke: "a key opens nothing any more",
    limit: "what a tenant may use",
}


if __name__ == "__main__":
    sys.exit(main())
