"""What the children share: requests and answers as JSON lines, and peaks of memory. It needs only the standard library.

`peers/child.py` starts a child and speaks with it. A child's first line is `{"ready": {PACKAGE: VERSION}}`. An answer
to a request is an object with what the child found, or `{"error": WORDS}`; both have `peak_mib`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Request = dict[str, Any]
# Before the libraries are imported: what they print goes to stderr, where it disturbs nobody.
_OUTPUT = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def serve(packages: tuple[str, ...], answer: Callable[[Request], dict[str, Any]]) -> None:
    """Answer each line of stdin until it ends. An exception of `answer` becomes an error, and the next line follows."""
    _write({"ready": {name: version(name) for name in packages}})
    for line in sys.stdin:
        _reset_peak()
        try:
            found = answer(json.loads(line))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        _write(found | {"peak_mib": _peak_mib()})


def _write(values: dict[str, Any]) -> None:
    _OUTPUT.write(json.dumps(values) + "\n")
    _OUTPUT.flush()


def _reset_peak() -> None:
    """Let the peak of resident memory begin anew. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
