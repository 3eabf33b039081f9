"""services/README.md names what exists: files, and a row for each package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRESIFT = ROOT / "services" / "presift"
README = (ROOT / "services" / "README.md").read_text(encoding="utf-8")


def paths(text):
    """What is in backticks and has a slash; NAME stands for a file that does not exist yet."""
    return {path for path in re.findall(r"`([\w./-]+)`", text) if "/" in path and "NAME" not in path}


def missing(text):
    return sorted(path for path in paths(text) if not ((PRESIFT / path).exists() or (ROOT / path).exists()))


def section(heading):
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def packages():
    """Those of services/presift, and of the large ones their packages too."""
    found = {path.parent.relative_to(PRESIFT).as_posix() for path in PRESIFT.glob("**/__init__.py")}
    own = {name for name in found if "/" not in name} - {".", "orchestrator"}
    return own | {name for name in found if re.fullmatch(r"orchestrator/\w+", name)}


def test_every_file_exists():
    assert missing(README) == []


def test_a_missing_file_is_found():
    assert missing("`core/plan.py`, `core/plans.py` and `protos/presift/v1/plans.proto`") == [
        "core/plans.py",
        "protos/presift/v1/plans.proto",
    ]


def test_every_package_has_a_row():
    rows = set(re.findall(r"^\| `([\w/]+)` \|", section("Packages"), re.MULTILINE))
    assert packages() <= rows


@pytest.mark.parametrize("heading", ["The life of a request", "The life of a SpecKV request inside SGLang"])
def test_a_life_has_eight_steps(heading):
    assert re.findall(r"^(\d+)\. ", section(heading), re.MULTILINE) == [str(number) for number in range(1, 9)]


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) < 200 and max(map(len, lines)) < 120
