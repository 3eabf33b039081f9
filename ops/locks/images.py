"""Which packages each container image gets: of the lock, what its extra needs, all the way down, and nothing more.

`python ops/locks/images.py` writes ops/locks/images/ROLE.txt, to be installed with `pip install --no-deps -r`; run it
after a change to the lock or to pyproject.toml's extras, in the environment that the lock describes. `--check` writes
nothing and fails where a file is not what it would be.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
LOCK, IMAGES = FOLDER / "cpu.txt", FOLDER / "images"
PYPROJECT = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# Each image is made of the extra of its name; `models` fetches the demo models, then ends. `build` makes our wheel.
BUILD, ROLES = "build", ("orchestrator", "draft", "target", "models")
# What SGLang imports and does not name, or only for a GPU.
UNDECLARED = {"target": ("accelerate", "dill", "jsonschema")}
_HEAD = "# Image `{}`: what it is asked for and all that this needs, as in ../cpu.txt. By ops/locks/images.py.\n"


def pins(lock: Path = LOCK) -> dict[str, str]:
    """Canonical name -> line of the lock."""
    lines = [line.strip() for line in lock.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): line for line in lines}


def text(role: str) -> str:
    """What ops/locks/images/ROLE.txt is to hold."""
    known = pins()
    names = closure(wanted_by(role), known)
    return _HEAD.format(role) + "".join(f"{known[name]}\n" for name in sorted(names))


def wanted_by(role: str) -> list[Requirement]:
    """What is asked for by name."""
    if role == BUILD:
        return [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]
    return extra_of_presift(role) + [Requirement(name) for name in UNDECLARED.get(role, ())]


def extra_of_presift(extra: str) -> list[Requirement]:
    """Its requirements, with those of presift itself and of the extras that it names."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found += [each for name in requirement.extras for each in extra_of_presift(name)]
        else:
            found.append(requirement)
    return found


def closure(wanted: list[Requirement], known: dict[str, str]) -> set[str]:
    """Canonical names. What the lock leaves out on purpose (SGLang's CUDA packages) is left out here."""
    found = set[str]()
    seen = set[tuple[str, frozenset[str]]]()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        asked = (name, frozenset(requirement.extras))
        if name not in known or asked in seen:
            continue
        seen.add(asked)
        found.add(name)
        wanted += _needs(requirement)
    return found


def _needs(requirement: Requirement) -> list[Requirement]:
    try:
        lines = requires(requirement.name) or []
    except PackageNotFoundError:
        raise SystemExit(f"{requirement.name} is not installed here: run `make install` first") from None
    needs = [Requirement(line) for line in lines]
    extras = ["", *requirement.extras]
    return [each for each in needs if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras)]


def main(arguments: list[str]) -> int:
    """0; or, with `--check`, 1 where a file is not what it would be."""
    stale = [role for role in (BUILD, *ROLES) if not _is_current(role)]
    if "--check" in arguments:
        for role in stale:
            print(f"ops/locks/images/{role}.txt is not what the lock says: run ops/locks/images.py", file=sys.stderr)
        return 1 if stale else 0
    IMAGES.mkdir(exist_ok=True)
    for role in stale:
        (IMAGES / f"{role}.txt").write_text(text(role))
    return 0


def _is_current(role: str) -> bool:
    file = IMAGES / f"{role}.txt"
    return file.is_file() and file.read_text() == text(role)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
