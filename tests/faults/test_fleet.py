"""Faults of a fleet, one after another: three orchestrators, four targets, two drafts, and Valkeys under a Sentinel.

`make faults` runs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from presift_client import AsyncClient

from .fleet import FAKETIME, Fleet
from .fleet_faults import FLEET_FAULTS, play_in_fleet
from .results import Results
from .scenarios import Fault
from .stack import Plan
from .traffic import Oracle
from .upgrade import NUMBERS, Patient

CALLERS = 12
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    flags = ("--no-calibrate", "--guard-share=0", "--http-listen=127.0.0.1:0")
    logs = tmp_path_factory.mktemp("fleet")
    plan = Plan(tiny_model("tinyq"), logs, drafts=2, targets=4, orchestrators=3, orchestrator_flags=flags)
    async with Fleet(plan) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowd(fleet: Fleet) -> Patient:
    """Callers who know what every answer must be."""
    oracle = Oracle()
    async with AsyncClient(fleet.addresses[0]) as client:
        await oracle.learn(client, NUMBERS)
    return Patient(fleet.addresses, oracle, CALLERS)


@pytest.mark.faults
@pytest.mark.parametrize(("victim", "fault"), FLEET_FAULTS, ids=[f"{who}: {what.name}" for who, what in FLEET_FAULTS])
async def test_a_fault_of_a_fleet(
    fleet: Fleet, crowd: Patient, results: Results, victim: str, fault: Fault[Fleet]
) -> None:
    if victim.startswith("clock") and not FAKETIME.exists():
        pytest.skip("no libfaketime: `make faketime`")
    row = await play_in_fleet(fleet, crowd, victim, fault)
    results.fleet.append(row)
    assert row.complaints() == []
    assert all(map(fleet.is_up, fleet.members))
