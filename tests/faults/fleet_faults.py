"""The faults of a fleet, in the order in which they come, and one scenario with callers over gRPC and HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.rpc.pool.pool import RESOLVE_EVERY_S

from .fleet import Fleet
from .meter import clock_of
from .scenarios import Fault, Row, kill, launch, nothing, play
from .traffic import Crowd
from .upgrade import calling_http, order_of

STEP_S = 3600
_MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
_BETWEEN_S = 2.0
_PATIENCE_S = 60.0
# What a caller over gRPC is told of the same trouble.
_AS_GRPC = {
    "ReadError": "Unavailable",
    "RemoteProtocolError": "Unavailable",
    "HTTP 503": "Unavailable",
    "HTTP 504": "DeadlineExceeded",
}


async def _lose_primary(fleet: Fleet, victim: str) -> None:
    fleet.valkeys.kill(fleet.valkeys.primary)
    await fleet.fail_over()
    await fleet.wait_for_a_new_value()


async def _replace_replica(fleet: Fleet, victim: str) -> None:
    await fleet.restart_valkey(1 - fleet.valkeys.primary)


async def _move_slowly(fleet: Fleet, victim: str) -> None:
    await fleet.move_targets()
    await fleet.wait_until_moved()
    await fleet.close_old_addresses()


async def _move_at_once(fleet: Fleet, victim: str) -> None:
    await fleet.move_targets()
    await fleet.close_old_addresses()


async def _fail_lookup(fleet: Fleet, victim: str) -> None:
    fleet.name_addresses(are_known=False)
    await asyncio.sleep(RESOLVE_EVERY_S)


async def _restore_lookup(fleet: Fleet, victim: str) -> None:
    fleet.name_addresses()


async def _step_clock(fleet: Fleet, victim: str, to_s: int = STEP_S) -> None:
    """Of one service, or of all if `victim` names none."""
    names = [victim.removeprefix("clock of ")]
    names = names if names[0] in fleet.with_clocks else fleet.with_clocks
    for name in names:
        fleet.step_clock(name, to_s)
    async with asyncio.timeout(_PATIENCE_S):
        for name in names:
            while abs(await clock_of(fleet, name) - time.time() - to_s) > STEP_S / 2:
                await asyncio.sleep(0.2)


async def _step_back(fleet: Fleet, victim: str) -> None:
    await _step_clock(fleet, victim, 0)


async def _stop_reading(fleet: Fleet, victim: str) -> None:
    fleet.toggle_stderr()
    # A draft that is gone is worth a warning: there is something to write.
    fleet.kill("draft-1")
    await asyncio.sleep(_BETWEEN_S)
    for name in set(fleet.members) - {"draft-1"}:
        async with grpc.aio.insecure_channel(fleet.members[name].running.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            await check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S / 2)


async def _read_on(fleet: Fleet, victim: str) -> None:
    # A process that is started now has an ordinary stderr.
    fleet.toggle_stderr()
    await fleet.launch("draft-1")


async def _run_out_of_memory(fleet: Fleet, victim: str) -> None:
    """The kernel kills the process at its next page, because its group may have none."""
    group = _MEMORY_GROUPS / f"presift-faults-{fleet.pid(victim)}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("4096")
        (group / "cgroup.procs").write_text(str(fleet.pid(victim)))
        async with asyncio.timeout(_PATIENCE_S):
            while fleet.is_up(victim):
                await asyncio.sleep(0.05)
        assert fleet.members[victim].running.stop(5.0) == -signal.SIGKILL
    finally:
        group.rmdir()


async def _restart_all(fleet: Fleet, victim: str) -> None:
    for name in sorted(fleet.members, key=order_of):
        await fleet.end(name)
        await fleet.launch(name)
        await asyncio.sleep(_BETWEEN_S)
    for _ in range(2):
        await fleet.restart_valkey(1 - fleet.valkeys.primary)
        await fleet.fail_over()
    await fleet.wait_for_a_new_value()


def _out_of_memory() -> Fault[Fleet]:
    """By a memory group (version 1) where this process may make one, else as the kernel does it: SIGKILL."""
    if (_MEMORY_GROUPS / "memory.limit_in_bytes").exists() and os.access(_MEMORY_GROUPS, os.W_OK):
        return Fault("OOM kill", _run_out_of_memory, launch)
    return Fault("OOM kill (a plain SIGKILL)", kill, launch)


OOM_KILL = _out_of_memory()
CLOCK_STEP = Fault("one hour forward, then back", _step_clock, _step_back)
# Whom each fault meets. The first word says which errors callers may see.
FLEET_FAULTS: tuple[tuple[str, Fault[Fleet]], ...] = (
    ("cache primary", Fault("kill -9, failover", _lose_primary, _replace_replica)),
    ("DNS of targets", Fault("new addresses, old ones serve on", _move_slowly, nothing)),
    ("DNS of targets", Fault("no answer", _fail_lookup, _restore_lookup)),
    ("target group", Fault("new addresses, old ones end", _move_at_once, nothing)),
    ("clock of orchestrator-0", CLOCK_STEP),
    ("clock of orchestrators and targets", CLOCK_STEP),
    ("stderr of drafts and orchestrators", Fault("full pipe", _stop_reading, _read_on)),
    ("draft-0", OOM_KILL),
    ("target-0", OOM_KILL),
    ("orchestrator-0", OOM_KILL),
    ("each service", Fault("restarted one after another", _restart_all, nothing)),
)


async def play_in_fleet(fleet: Fleet, crowd: Crowd, victim: str, fault: Fault[Fleet]) -> Row:
    """One scenario with one more caller, over HTTP, whose calls are counted as if they were over gRPC."""
    async with calling_http(fleet) as http:
        row = await play(fleet, crowd, victim, fault)
    errors = (call.error.partition(":")[0] for call in http if call.error)
    return replace(
        row,
        calls=row.calls + len(http),
        errors=row.errors + Counter(_AS_GRPC.get(error, error) for error in errors),
        fallbacks=row.fallbacks + Counter(call.fallback for call in http if call.fallback),
        faults=row.faults + Counter(call.fault for call in http if call.fault),
    )
