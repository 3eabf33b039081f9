"""The console script where the extra `cli` is installed, and where it is not."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from presift.cli import entry

ROOT = Path(__file__).parents[3]
# As in an environment with the base wheel: the packages of the extra cannot be imported.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('typer', 'rich', 'pydantic', 'pydantic_settings')));"


def run(*arguments, code="from presift.cli.entry import main; main()"):
    paths = os.pathsep.join(str(ROOT / path) for path in ("services", "clients/python"))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("prefix", ["", WITHOUT], ids=["cli", "base"])
def test_the_version(prefix):
    done = run("--version", code=f"{prefix}from presift.cli.entry import main; main()")
    assert (done.returncode, done.stdout) == (0, f"presift {version('presift')}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["up"], ["generate", "hi"]])
def test_the_base_wheel_says_what_to_install(arguments):
    done = run(*arguments, code=f"{WITHOUT} from presift.cli.entry import main; main()")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: the command `presift` needs the extra `cli`") and "typer" in done.stderr
    assert "pip install '.[cli]'" in done.stderr and "make install" in done.stderr


def test_a_broken_package_is_not_taken_for_an_incomplete_one(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["presift", "up"])
    monkeypatch.setitem(sys.modules, "presift.cli.app", None)
    with pytest.raises(ModuleNotFoundError):
        entry.main()


def test_sources_without_a_distribution_have_no_version(monkeypatch):
    def missing(name):
        raise entry.PackageNotFoundError(name)

    monkeypatch.setattr(entry, "installed_version", missing)
    assert entry.version() == "unknown"
