"""Every fault of every service, under 20 callers: nothing wrong, nobody waits past a deadline, and it is soon over.

A share runs by default; all of them with `-m faults` (`make faults`).
"""

from __future__ import annotations

import pytest

from .scenarios import FAULTS, NUMBERS, TARGETS, Row, play
from .stack import Stack
from .traffic import Crowd, Oracle

VICTIMS = ("draft-0", "cache", *(f"target-{number}" for number in range(TARGETS)), "orchestrator-0")
_SHARE = {("draft-0", "kill -9"), ("cache", "SIGSTOP"), ("target-0", "kill -9"), ("orchestrator-0", "SIGSTOP")}
CASES = [
    pytest.param(victim, fault, marks=() if (victim, fault) in _SHARE else (pytest.mark.faults,))
    for victim in VICTIMS
    for fault in FAULTS
]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("victim", "fault"), CASES)
async def test_a_fault_under_20_callers(stack: Stack, oracle: Oracle, rows: list[Row], victim: str, fault: str) -> None:
    row = await play(stack, Crowd(stack.addresses, oracle, NUMBERS), victim, FAULTS[fault])
    rows.append(row)
    assert row.complaints() == []
    assert all(stack.is_up(name) for name in stack.proxies)
