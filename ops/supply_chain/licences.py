"""Check the licences of the installed packages against licences.toml: `licences.py PIP_LICENSES PYTHON`.

pip-licenses reads them from the packages. Exits with 1 and prints each package whose licence is not allowed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ALLOW_LIST = Path(__file__).with_name("licences.toml")


def forbidden(packages: Iterable[Mapping[str, str]], allowed: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """`name version: licence` of each package (Name, Version, License) that is neither allowed nor known by name."""
    return [
        f"{each['Name']} {each['Version']}: {_name(each['License']) or 'none'}"
        for each in packages
        if each["Name"].lower() not in known and not is_allowed(_name(each["License"]), allowed)
    ]


def _name(licence: str) -> str:
    """Some packages have the whole text; its first line is the name."""
    return next(iter(licence.strip().splitlines()), "")[:80]


def is_allowed(licence: str, allowed: Sequence[str]) -> bool:
    """One of `A OR B`, but all of `A AND B` and of classifiers `A; B`, must be allowed. Ignores case."""
    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in allowed]
    parts = [part.strip(" ()") for part in re.split(r";|\bAND\b", licence)]
    return all(_any_allowed(re.split(r"\bOR\b", part), patterns) for part in parts)


def _any_allowed(choices: Iterable[str], patterns: Iterable[re.Pattern[str]]) -> bool:
    return any(pattern.fullmatch(choice.strip(" ()")) for choice in choices for pattern in patterns)


def main(pip_licenses: str, python: str) -> int:
    """Exit status: 0 if all are allowed."""
    listed = subprocess.run(
        [pip_licenses, f"--python={python}", "--from=mixed", "--with-system", "--format=json"],
        capture_output=True,
        text=True,
        check=True,
    )
    lists = tomllib.loads(ALLOW_LIST.read_text())
    packages = json.loads(listed.stdout)
    found = forbidden(packages, lists["allowed"], lists["known"])
    for line in found:
        print(f"licence not allowed (ops/supply_chain/licences.toml): {line}", file=sys.stderr)
    if not found:
        print(f"== licences: {len(packages)} packages, all allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
