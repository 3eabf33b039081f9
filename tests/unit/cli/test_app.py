"""The command, run in this process against an address where nobody listens."""

import json

import pytest
from typer.testing import CliRunner

from presift.cli.app import app

NOBODY = ["--address", "127.0.0.1:1"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("PRESIFT_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def test_help_names_the_commands(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("up", "generate", "models"))


def test_misuse_is_told_in_one_line(run):
    result = run("generate", *NOBODY)
    assert result.exit_code == 1 and result.stderr == "error: give either a PROMPT or --question\n"


def test_an_unknown_route_is_told(run):
    result = run("generate", "hi", "--route", "warp", *NOBODY)
    assert result.exit_code == 1 and "spec_pc" in result.stderr and "Traceback" not in result.stderr


def test_nobody_there_is_told(run):
    result = run("generate", "hi", "--deadline", "5", *NOBODY)
    assert result.exit_code == 1 and result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_a_file_that_is_not_there_is_told(run, tmp_path):
    result = run("generate", "--question", "why?", "--file", tmp_path / "none.txt", *NOBODY)
    assert result.exit_code == 1 and "none.txt" in result.stderr


def test_models_as_json(run):
    result = run("models", "--json", *NOBODY)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["served"] is None and told["local"] and set(told["local"].values()) == {None}


def test_an_unknown_model_is_told(run):
    result = run("models", "--ensure", "no-such-model", *NOBODY)
    assert result.exit_code == 1 and result.stderr.startswith("error: ")
