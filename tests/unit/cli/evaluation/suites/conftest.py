"""Packages for suites, and a counter of words."""

import sys
from pathlib import Path

import pytest

from presift.cli.evaluation.suites.foreign_python import ForeignPython
from presift.cli.evaluation.suites.suite import Source, Wanted

from .....suite_packages import install_all


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder of the packages, which every Python finds that this test starts."""
    site = tmp_path / "site"
    install_all(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


class WordCounter:
    """Counts words, as the stack counts tokens."""

    def __init__(self):
        self.counted = 0

    async def text(self, text):
        self.counted += 1
        return len(text.split())

    async def chat(self, messages):
        return sum([await self.text(message["content"]) for message in messages])


@pytest.fixture
def counter():
    return WordCounter()


@pytest.fixture
def python():
    return ForeignPython(Path(sys.executable))


@pytest.fixture
def lines(site, python, counter):
    """A suite and what differs from its usual wishes -> its lines."""

    async def lines(suite, **changes):
        packages = await python.packages(
            suite.name, suite.distributions, suite.without_dependencies, needs_sentences=suite.needs_sentences
        )
        wanted = {"lengths": (40,), "tasks": (), "per_task": 2, "seed": 0, "answer_tokens": 4} | changes
        return [line async for line in suite.lines(Wanted(**wanted), Source(python, packages, counter))]

    return lines
