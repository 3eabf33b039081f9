"""Flags of the fault suites, a stack of real processes that tests share, and the tables that they fill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from presift_client import AsyncClient

from .results import Results
from .scenarios import NUMBERS, TARGETS, Row
from .stack import Plan, Stack
from .traffic import Oracle

_RESULTS = Path(__file__).with_name("RESULTS.md")
_KEY = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Seen only where this folder is named: `pytest tests/faults --write-results`."""
    parser.addoption("--write-results", action="store_true", help="write tests/faults/RESULTS.md")
    parser.addoption("--soak-minutes", type=float, default=2.0, help="how long the soak is")
    parser.addoption("--old", default="", help="the Git ref of the version that test_versions.py runs beside this one")


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Iterator[Results]:
    """What the suites of this run came to."""
    pytestconfig.stash[_KEY] = results = Results()
    yield results
    if pytestconfig.getoption("--write-results", False):
        results.write(_RESULTS)


@pytest.fixture(scope="session")
def rows(results: Results) -> list[Row]:
    """What the scenarios of faults came to."""
    return results.faults


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for head, table in config.stash.get(_KEY, Results()).sections():
        terminalreporter.section(head.partition("\n")[0].removeprefix("# "))
        for line in table:
            terminalreporter.write_line(line)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One draft, one cache, two targets, two orchestrators."""
    async with Stack(Plan(tiny_model("tinyq"), tmp_path_factory.mktemp("faults"), targets=TARGETS)) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def oracle(stack: Stack) -> Oracle:
    """What every answer must be."""
    oracle = Oracle()
    async with AsyncClient(stack.addresses[0]) as client:
        await oracle.learn(client, NUMBERS)
    return oracle
