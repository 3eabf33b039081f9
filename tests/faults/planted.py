"""Plants one fault after another in a copy of the tree; a test must fail for each.

`python -m tests.faults.planted [NAME ...]` runs all faults or the named ones, prints a table, and exits with 1 if a
fault survives. `--every` names every test that fails, not the first alone. The faults are in `planted_faults.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path

from .planted_faults import FAULTS, Planted

ROOT = Path(__file__).parents[2]
COPIED = ("services", "clients", "tests", "protos", "ops", "pyproject.toml", "README.md")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "node_modules", ".pytest_cache")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
# Some faults make a test wait for ever: in seconds, and that is a failure too.
HANGS = "--timeout=180"
# pytest's exit codes. Any other one says that the tests did not run, which catches nothing.
PASSED, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every fault is caught, 1 if one survives, 2 if a fault or its tests do not fit the tree."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to plant; all if left out")
    parser.add_argument("--every", action="store_true", help="do not stop at the first test that fails")
    parser.add_argument("--no-baseline", action="store_true", help="do not first run the tests without a fault")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    if unknown := set(options.names) - {fault.name for fault in FAULTS}:
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = copy_of_the_tree(Path(folder))
        if not options.no_baseline and not passes(tree, faults):
            return 2
        outcomes = [plant_and_test(tree, fault, every=options.every) for fault in faults]
    return max(outcomes, default=0)


def copy_of_the_tree(folder: Path) -> Path:
    """A copy of what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copy(source, folder / name)
    return folder


def passes(tree: Path, faults: Sequence[Planted]) -> bool:
    """Whether the tests of these faults pass without a fault, on the copy's own packages."""
    code, output = run(tree, ["-c", "import presift.core.errors, presift_client; print(presift.core.errors.__file__)"])
    if code != 0 or not Path(output.strip()).is_relative_to(tree):
        print(f"the copy's packages are not imported: {output}")
        return False
    tests = sorted({test for fault in faults for test in fault.tests})
    code, output = run(tree, [*PYTEST, *tests])
    if code != PASSED:
        print(f"{output}\nthe tests must pass without a fault (exit code {code})")
    return code == PASSED


def plant_and_test(tree: Path, fault: Planted, *, every: bool) -> int:
    """0 if a test fails with the fault, 1 if none does, 2 if the fault or its tests do not fit the tree."""
    began = time.monotonic()
    try:
        with planted(tree, fault):
            code, output = run(tree, [*PYTEST, *([] if every else ["-x"]), HANGS, *fault.tests])
    except ValueError as error:
        print(f"{fault.name:<36} does not fit  {error}", flush=True)
        return 2
    verdict, outcome = {FAILED: ("caught", 0), PASSED: ("SURVIVED", 1)}.get(code, (f"pytest said {code}", 2))
    if code == PASSED and re.search(r"\d+ skipped", output):
        verdict, outcome = "not tested: skipped", 2
    caught_by = ", ".join(failed_tests(output)) if outcome == 0 else fault.guarantee
    print(f"{fault.name:<36} {verdict:<9} {time.monotonic() - began:5.1f} s  {caught_by}", flush=True)
    if outcome == 2:
        print(output)
    return outcome


@contextmanager
def planted(tree: Path, fault: Planted) -> Iterator[None]:
    """The fault is in the copy, until the block ends. Raises ValueError unless `old` occurs exactly once."""
    path = tree / fault.file
    if not path.exists():
        raise ValueError(f"there is no {fault.file}")
    sound = path.read_text(encoding="utf-8")
    if (found := sound.count(fault.old)) != 1:
        raise ValueError(f"`old` occurs {found} times in {fault.file}; it must occur once")
    _write(path, sound.replace(fault.old, fault.new))
    try:
        yield
    finally:
        _write(path, sound)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    # Python takes bytecode of the same second and size for current.
    Path(cache_from_source(str(path))).unlink(missing_ok=True)


def run(tree: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of Python in the copy; processes that it starts import the copy's packages too."""
    paths = os.pathsep.join(str(tree / each) for each in ("services", "clients/python"))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def failed_tests(output: str) -> list[str]:
    """The tests that pytest's summary names as failed, without their parameters."""
    named = re.findall(r"^(?:FAILED|ERROR) (\S+?::\w+)", output, re.MULTILINE)
    return list(dict.fromkeys(named))


if __name__ == "__main__":
    sys.exit(main())
