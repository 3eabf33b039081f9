"""Report known vulnerabilities of the locked packages: `audit.py PIP_AUDIT LOCK STAMP [--strict]`.

Queries the index at most once a day (STAMP). Findings are printed, as is a network failure. With --strict (a release)
a network failure fails, and so does each finding that advisories.toml does not explain.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

KNOWN = Path(__file__).with_name("advisories.toml")
_FRESH_S = 86_400.0
_PATIENCE_S = 60.0
# An old release with known advisories.
_PROBE = "pip==24.0\n"


def findings(report: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """`name version: advisory (fixed in ...)` of each finding of pip-audit's JSON that is not known."""
    return [
        f"{each['name']} {each['version']}: {found['id']} (fixed in {', '.join(found['fix_versions']) or 'none'})"
        for each in report["dependencies"]
        for found in each.get("vulns", ())
        if not {found["id"], *found.get("aliases", ())} & set(known)
    ]


def audit_report(pip_audit: str, lock: Path) -> dict[str, Any] | str:
    """pip-audit's report, or the reason why there is none. Tries one package first: many mirrors have no advisories."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as first:
        first.write(_PROBE)
        first.flush()
        answer = _run(pip_audit, Path(first.name))
    return answer if isinstance(answer, str) else _run(pip_audit, lock)


def _run(pip_audit: str, requirements: Path) -> dict[str, Any] | str:
    command = [pip_audit, "--requirement", str(requirements), "--no-deps", "--disable-pip", "--format=json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner=off", "--timeout=5"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
        report = dict(json.loads(done.stdout))
        told = any("skip_reason" not in each for each in report["dependencies"])
        return report if told else "the index has no advisories"
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    except (KeyError, ValueError):
        return next(iter(done.stderr.strip().splitlines()[-1:]), "no report")[-160:]


def is_fresh(stamp: Path, lock: Path) -> bool:
    """Whether this lock was checked within a day."""
    if not stamp.exists():
        return False
    checked_at = stamp.stat().st_mtime
    return checked_at > lock.stat().st_mtime and time.time() - checked_at < _FRESH_S


def main(pip_audit: str, lock: Path, stamp: Path, *, strict: bool) -> int:
    """Exit status: with `strict` 1 for unexplained findings or no report, else 0."""
    if is_fresh(stamp, lock) and not strict:
        return 0
    report = audit_report(pip_audit, lock)
    if isinstance(report, str):
        print(f"== pip-audit: NOT RUN, {lock} was not checked ({report})", file=sys.stderr)
        return int(strict)
    found = findings(report, tomllib.loads(KNOWN.read_text())["known"])
    for line in found:
        print(f"vulnerable: {line}", file=sys.stderr)
    audited = [each for each in report["dependencies"] if "skip_reason" not in each]
    of = len(report["dependencies"])
    print(f"== pip-audit: {len(audited)} of {of} packages known to the index, {len(found)} unexplained findings")
    if not found:
        stamp.touch()
    return int(strict and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), strict="--strict" in sys.argv[4:]))
