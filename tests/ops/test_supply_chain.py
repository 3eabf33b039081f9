"""Licences and advisories: planted ones are found, and a missing network fails only a release."""

import json
import os
import sys
import tomllib
from pathlib import Path

import audit
import licences
import pytest

ROOT = Path(__file__).parents[2]
LISTS = tomllib.loads(licences.ALLOW_LIST.read_text())
NAMES = {
    "MIT": True,
    "MIT License": True,
    "Apache-2.0": True,
    "Apache Software License": True,
    "Apache License 2.0": True,
    "Apache Software License; MIT License": True,
    "BSD-3-Clause": True,
    "BSD License": True,
    "3-Clause BSD License": True,
    "Apache-2.0 OR BSD-3-Clause": True,
    "GPL-3.0-only OR MIT": True,
    "MIT AND (Apache-2.0 OR BSD-2-Clause)": True,
    "MPL-2.0 AND MIT": True,
    "Python Software Foundation License": True,
    "GPL-3.0-only": False,
    "GNU General Public License v3 (GPLv3)": False,
    "GNU Affero General Public License v3": False,
    "MIT AND GPL-3.0-only": False,
    "MIT License; GNU General Public License v2 (GPLv2)": False,
    "SSPL-1.0": False,
    "Business Source License 1.1": False,
    "LicenseRef-NVIDIA-Proprietary": False,
    "NVIDIA Proprietary Software": False,
    "Other/Proprietary License": False,
    "DFSG approved; MIT License": True,
    "Mozilla Public License 2.0 (MPL 2.0)": True,
    "ISC License (ISCL)": True,
    "UNKNOWN": False,
    "": False,
}


@pytest.mark.parametrize(("name", "allowed"), NAMES.items(), ids=NAMES)
def test_licences(name, allowed):
    assert licences.is_allowed(name, LISTS["allowed"]) is allowed


def tool(path, out, *, code=0, err=""):
    """A program that prints this."""
    says = f"print({out!r})\nprint({err!r}, file=sys.stderr)\nsys.exit({code})\n"
    path.write_text(f"#!{sys.executable}\nimport sys\n{says}")
    path.chmod(0o755)
    return str(path)


def test_a_planted_licence_fails_by_name(tmp_path, capsys):
    rows = [
        {"Name": "fine", "Version": "1", "License": "MIT"},
        {"Name": "planted", "Version": "2", "License": "GNU Affero General Public License v3\nmore"},
    ]
    assert licences.main(tool(tmp_path / "tool", json.dumps(rows)), "python") == 1
    assert "planted 2: GNU Affero" in capsys.readouterr().err
    assert licences.main(tool(tmp_path / "tool", json.dumps(rows[:1])), "python") == 0


def test_a_package_that_is_known_by_name_is_allowed():
    rows = [{"Name": "Odd", "Version": "1", "License": "UNKNOWN"}]
    assert licences.forbidden(rows, LISTS["allowed"], {}) == ["Odd 1: UNKNOWN"]
    assert licences.forbidden(rows, LISTS["allowed"], {"odd": "MIT, by its LICENSE file"}) == []


REPORT = {
    "dependencies": [
        {"name": "fine", "version": "1", "vulns": []},
        {"name": "skipped", "skip_reason": "not on the index"},
        {
            "name": "planted",
            "version": "2",
            "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"], "description": ""}],
        },
    ]
}


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "lock.txt"
    path.write_text("planted==2\n")
    os.utime(path, (1, 1))
    return path


def test_a_planted_advisory_is_reported_and_fails_a_release(tmp_path, lock, capsys):
    pip_audit, stamp = tool(tmp_path / "tool", json.dumps(REPORT), code=1), tmp_path / "stamp"
    assert audit.main(pip_audit, lock, stamp, strict=False) == 0
    assert "planted 2: PYSEC-1 (fixed in 3)" in capsys.readouterr().err
    assert audit.main(pip_audit, lock, stamp, strict=True) == 1 and not stamp.exists()
    assert audit.findings(REPORT, {"CVE-1": "never called"}) == []


def test_a_missing_network_is_reported_and_fails_a_release(tmp_path, lock, capsys):
    pip_audit, stamp = tool(tmp_path / "tool", "", code=1, err="ConnectionError: no route"), tmp_path / "stamp"
    assert audit.main(pip_audit, lock, stamp, strict=False) == 0
    told = capsys.readouterr().err
    assert "NOT RUN" in told and "no route" in told and not stamp.exists()
    assert audit.main(pip_audit, lock, stamp, strict=True) == 1
    assert audit.main(str(tmp_path / "none"), lock, stamp, strict=False) == 0


def test_an_index_without_advisories_counts_as_no_report(tmp_path, lock, capsys):
    mirror = tool(tmp_path / "tool", json.dumps({"dependencies": REPORT["dependencies"][1:2]}))
    assert audit.main(mirror, lock, tmp_path / "stamp", strict=False) == 0
    assert "NOT RUN" in capsys.readouterr().err
    assert audit.main(mirror, lock, tmp_path / "stamp", strict=True) == 1


def test_the_index_is_queried_once_a_day(tmp_path, lock):
    clean, stamp = tool(tmp_path / "tool", json.dumps({"dependencies": REPORT["dependencies"][:1]})), tmp_path / "stamp"
    assert audit.main(clean, lock, stamp, strict=True) == 0 and audit.is_fresh(stamp, lock)
    planted = tool(tmp_path / "planted", json.dumps(REPORT), code=1)
    assert audit.main(planted, lock, stamp, strict=False) == 0
    assert audit.main(planted, lock, stamp, strict=True) == 1
    os.utime(stamp, (2, 2))
    assert not audit.is_fresh(stamp, lock)


def test_every_exception_has_a_reason():
    advisories = tomllib.loads(audit.KNOWN.read_text())["known"]
    assert all(reason.strip() for reason in (*LISTS["known"].values(), *advisories.values()))


def test_every_lock_pins_everything():
    for path in (ROOT / "ops" / "locks").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines and all("==" in line for line in lines), path
