"""Flags of the fault suite, a stack of real processes that its tests share, and the table that they fill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from presift_client import AsyncClient

from .scenarios import NUMBERS, TARGETS, Row, table_of
from .stack import Plan, Stack
from .traffic import Oracle

_RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """# The fault suite's table

Written by `make faults` (`pytest tests/faults --write-results`). Real processes; meanwhile 20 callers send requests on
all routes, and each answer is checked token by token. A fault lasts 4 s. A killed service is started again after them;
recovery counts from when it reports that it is ready. Deadlines are 5, 8 and 12 s.
"""
_ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Seen only where this folder is named: `pytest tests/faults --write-results`."""
    parser.addoption("--write-results", action="store_true", help="write tests/faults/RESULTS.md")
    parser.addoption("--soak-minutes", type=float, default=2.0, help="how long the soak is")


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> Iterator[list[Row]]:
    """What the scenarios came to."""
    pytestconfig.stash[_ROWS] = rows = []
    yield rows
    if rows and pytestconfig.getoption("--write-results", False):
        _RESULTS.write_text("\n".join([_HEAD, *table_of(rows), ""]), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash.get(_ROWS, []):
        terminalreporter.section("faults")
        for line in table_of(rows):
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
