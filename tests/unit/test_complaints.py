"""ops/complaints.md names tests: each of them must exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "ops" / "complaints.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMPLAINTS = re.split(r"^(?=- )", TEXT, flags=re.MULTILINE)[1:]
NAMED = re.findall(r"`(tests/[\w/.]+)::(\w+)`", TEXT)


def test_every_complaint_names_a_test() -> None:
    assert COMPLAINTS
    assert [complaint for complaint in COMPLAINTS if "`tests/" not in complaint] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_is_named_exists(file: str, name: str) -> None:
    assert re.search(rf"^ *(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
