"""The size and shape of the code, without running it: imports in the orchestrator, policies, lines, odd phrases.

`--tree PATH` measures another checkout first: a cell then reads "that checkout -> this one". `--odd-words PATH` is a
script that prints how many odd phrases the given paths have, on its last line. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from journey import HERE, show

ROOM = "presift.orchestrator"
LINES = {"services": {".py"}, "tests": {".py"}, "ops": {".py", ".sh", ".mjs"}}
PROSE = {"services": "services", "tests": "tests", "docs": "README.md CHANGELOG.md clients ops protos"}
POLICY = re.compile(r"spec_?kv_?pc", re.IGNORECASE)
ISINSTANCE = re.compile(r"\bisinstance\(.*\bSpec(Pc|Kv|KvPc)\b|\bcase Spec(Pc|Kv|KvPc)\(")


def texts(folder: Path, kinds: set[str]) -> dict[Path, str]:
    """The hand-written files below `folder`."""
    paths = [path for path in folder.rglob("*") if path.suffix in kinds and "_pb2" not in path.name]
    return {path: path.read_text() for path in paths if not {"node_modules", ".venv"} & set(path.parts)}


def arrows(services: Path) -> set[tuple[str, str]]:
    """(entry, entry that it imports) for the files and folders at the orchestrator's top level."""
    found = set()
    for path, text in texts(services / ROOM.replace(".", "/"), {".py"}).items():
        parts = path.relative_to(services).with_suffix("").parts
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                base = [*(parts[: len(parts) - node.level] if node.level else ()), *(node.module or "").split(".")]
                names = [".".join([*filter(None, base), alias.name]) for alias in node.names]
            found |= {(parts[2], name.split(".")[2]) for name in names if name.startswith(f"{ROOM}.")}
    return {(one, other) for one, other in found if one != other}


def upward(tree: Path, found: set[tuple[str, str]]) -> str:
    """Arrows to a higher layer of the tree's import-linter contract for the orchestrator."""
    contracts = tomllib.loads((tree / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next((each["layers"] for each in contracts if ROOM in each.get("containers", ())), None)
    if layers is None:
        return f"no layers; {sum(arrow[::-1] in found for arrow in found)} in mutual imports"
    floors = {name: floor for floor, names in enumerate(layers) for name in re.findall(r"\w+", names)}
    return str(sum(floors[other] < floors[one] for one, other in found if {one, other} <= floors.keys()))


def measure(tree: Path, odd_words: Path | None) -> dict[str, dict[str, object]]:
    code = texts(tree / "services", {".py"}) | texts(tree / "clients/python", {".py"})
    top = [path for path in (tree / "services" / ROOM.replace(".", "/")).iterdir() if path.name != "__pycache__"]
    folders, found = sum(path.is_dir() for path in top), arrows(tree / "services")
    counts: dict[str, object] = {
        "entries in orchestrator/": f"{len(top) - folders} files, {folders} folders",
        "import arrows between them": len(found),
        "upward arrows": upward(tree, found),
        "files that name spec_kv_pc": sum(bool(POLICY.search(text)) for text in code.values()),
        "isinstance on policies": sum(len(ISINSTANCE.findall(text)) for text in code.values()),
    }
    for folder, kinds in LINES.items():
        counts[f"lines of {folder}"] = sum(text.count("\n") for text in texts(tree / folder, kinds).values())
    for name, paths in PROSE.items() if odd_words else ():
        command = [sys.executable, str(odd_words), *(str(tree / path) for path in paths.split())]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        counts[f"odd phrases in {name}"] = printed.splitlines()[-1]
    return {name: {"measured": count} for name, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="the size and shape of the code")
    parser.add_argument("--tree", type=Path, help="another checkout, to compare with this one")
    parser.add_argument("--odd-words", type=Path, help="a script that counts odd phrases")
    options = parser.parse_args()
    show("house", ("measured",), [measure(tree, options.odd_words) for tree in (options.tree, HERE) if tree])


if __name__ == "__main__":
    main()
