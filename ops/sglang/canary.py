"""Try a version of SGLang: `canary.py VERSION_OR_WHEEL [TEST ...]`, or `make sglang-canary SGLANG=VERSION`.

Unpacks the wheel, without its dependencies, in front of the installed packages. Compares the functions that presift
hooks, and the functions and attributes that it uses besides (used_names.py), with functions.json, and runs tests
(default: those of dropping KV and of seeds) on that version. The exit status is the sum of 1 (some are gone or changed)
and 2 (tests failed), or 4 (no such wheel).

`--accept` runs no tests. It writes the version's digests to functions.json, for when the changes have been read.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from packaging.utils import parse_wheel_filename
from packaging.version import Version

from presift.target.sglang_plugin.sglang_names import hooked_functions
from presift.target.sglang_plugin.sglang_source import SglangSource
from presift.target.sglang_plugin.used_names import used_names

ROOT = Path(__file__).parents[2]
MANIFEST = Path(__file__).with_name("functions.json")
TESTS = ["tests/e2e/spec_kv", "tests/unit/target/sglang/test_seeds.py"]
# The sections of a version in the manifest, and what they list.
SECTIONS: dict[str, Callable[[str], list[str]]] = {
    "hooked": lambda version: list(hooked_functions(version).values()),
    "used": used_names,
}
GONE_OR_CHANGED, TESTS_FAILED, NO_WHEEL = 1, 2, 4


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sglang", metavar="VERSION_OR_WHEEL")
    parser.add_argument("tests", metavar="TEST", nargs="*", default=TESTS)
    parser.add_argument("--accept", action="store_true", help="write functions.json instead of comparing with it")
    given = parser.parse_args(arguments)
    cache = Path(os.environ.get("PRESIFT_HOME", Path.home() / ".cache" / "presift")) / "sglang"
    try:
        wheel = wheel_of(given.sglang, cache)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no wheel of SGLang {given.sglang}: {error}", file=sys.stderr)
        return NO_WHEEL
    version, folder = str(parse_wheel_filename(wheel.name)[1]), unpack(wheel, cache)
    found = sections(folder, version)
    manifest: dict[str, dict[str, dict[str, str]]] = json.loads(MANIFEST.read_text())
    if given.accept:
        manifest[version] = found
        in_order = {each: manifest[each] for each in sorted(manifest, key=Version)}
        MANIFEST.write_text(json.dumps(in_order, indent=2) + "\n")
        return 0
    base = base_of(version, manifest)
    changes = section_differences(version, found, manifest[base])
    for section, lines in changes.items():
        for line in lines:
            print(f"sglang {version}: {section}, {line}")
    counts = (f"{len(lines)} of {len(SECTIONS[each](version))} {each}" for each, lines in changes.items())
    print(f"== sglang {version}: {', '.join(counts)} names differ from {base}'s", flush=True)
    return GONE_OR_CHANGED * any(changes.values()) + TESTS_FAILED * (not passes(folder, given.tests))


def wheel_of(sglang: str, cache: Path) -> Path:
    """The wheel of a version, from the cache or downloaded, or `sglang` itself if it is one.

    Raises OSError or CalledProcessError.
    """
    if sglang.endswith(".whl"):
        return Path(sglang).resolve(strict=True)
    pattern = f"sglang-{sglang}-*.whl"
    if not list(cache.glob(pattern)):
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(cache))
        subprocess.run([sys.executable, "-m", "pip", "download", *options, f"sglang=={sglang}"], check=True)
    return next(cache.glob(pattern))


def unpack(wheel: Path, cache: Path) -> Path:
    """The folder with the wheel's packages. It is made anew if the wheel is newer."""
    folder = cache / wheel.stem
    if not folder.is_dir() or folder.stat().st_mtime < wheel.stat().st_mtime:
        shutil.rmtree(folder, ignore_errors=True)
        # Renamed at the end, so that an interrupted run leaves no half of a package.
        started = folder.with_suffix(".part")
        shutil.rmtree(started, ignore_errors=True)
        with zipfile.ZipFile(wheel) as files:
            files.extractall(started)
        started.rename(folder)
        folder.touch()
    return folder


def base_of(version: str, manifest: Iterable[str]) -> str:
    """The version of the manifest to compare with: itself, else the newest before it, else the oldest."""
    in_order = sorted(manifest, key=Version)
    return next((each for each in reversed(in_order) if Version(each) <= Version(version)), in_order[0])


def sections(folder: Path, version: str) -> dict[str, dict[str, str]]:
    """The digests of all sections, in the packages of `folder`."""
    return {section: digests(folder, paths(version)) for section, paths in SECTIONS.items()}


def section_differences(
    version: str, found: Mapping[str, Mapping[str, str]], expected: Mapping[str, Mapping[str, str]]
) -> dict[str, list[str]]:
    """The `differences` of each section."""
    return {
        section: differences(paths(version), found[section], expected[section]) for section, paths in SECTIONS.items()
    }


def differences(paths: Iterable[str], found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What is to be read before the version is supported, a line for each name."""
    lines = []
    for path in paths:
        if path not in found:
            lines.append(f"gone: {path}")
        elif path not in expected:
            lines.append(f"new: {path}")
        elif found[path] != expected[path]:
            lines.append(f"changed: {path}")
    return lines


def digests(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """The digest of each name, by its dotted path, in the packages of `folder`; nothing is imported.

    That of a function or class covers decorators, arguments and body, without docstrings, comments and layout. That of
    an attribute covers the statements of its class that assign it. Names that are not defined where the path says are
    left out.
    """
    source = SglangSource(folder)
    found = {path: source.statements(path) for path in paths}
    return {path: _digest(statements) for path, statements in found.items() if statements}


def _digest(statements: list[ast.stmt]) -> str:
    return hashlib.sha256("".join(_normalised(each) for each in statements).encode()).hexdigest()[:16]


def _normalised(node: object) -> str:
    """The tree as text. `ast.dump` differs between versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(_normalised(each) for each in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    present = (f"{name}={_normalised(value)}" for name, value in fields.items() if value is not None and value != [])
    return f"{type(node).__name__}({','.join(present)})"


def passes(folder: Path, tests: list[str]) -> bool:
    """Run `tests` with the packages of `folder` in front of the installed ones. False if any failed."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "not pair and not gpu", *tests]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
