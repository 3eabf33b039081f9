"""Schedulers are found and watched, whoever is their parent."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from presift.target.sglang import processes
from presift.target.sglang.processes import ExitWatch, scheduler_ids

# A parent that starts one scheduler and one other process, as SGLang calls them, and tells their ids.
PARENT = """
import os, subprocess, sys
names = ("sglang::scheduler_DP0_TP0", "sglang::detokenizer")
zombie = subprocess.Popen(["/bin/true"])
os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
print(*(subprocess.Popen([name, "600"], executable="/bin/sleep").pid for name in names), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """The parent, its scheduler and the other process."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1, text=True)
    assert parent.stdout is not None
    scheduler, other = map(int, parent.stdout.readline().split())
    yield parent, scheduler, other
    for process_id in (scheduler, other):
        os.kill(process_id, signal.SIGKILL)
    parent.communicate()


async def test_the_schedulers_of_a_child_are_found(family: tuple[subprocess.Popen[str], int, int]) -> None:
    parent, scheduler, _ = family
    assert scheduler_ids([parent]) == [scheduler]  # type: ignore[list-item]  # it has a pid too
    gone = multiprocessing.get_context("spawn").Process()
    gone.start()
    gone.join()
    assert scheduler_ids([gone]) == []


async def test_the_end_of_a_grandchild_is_told_once(family: tuple[subprocess.Popen[str], int, int]) -> None:
    _, scheduler, other = family
    ended = asyncio.Event()
    told: list[None] = []
    watch = ExitWatch([scheduler, other], lambda: (told.append(None), ended.set())[0])
    await asyncio.sleep(0.05)
    assert not told
    os.kill(scheduler, signal.SIGKILL)
    await asyncio.wait_for(ended.wait(), 30)
    await asyncio.sleep(0.05)
    assert len(told) == 1
    watch.close()
    os.kill(other, signal.SIGKILL)
    await asyncio.sleep(0.05)
    assert len(told) == 1


async def test_where_processes_cannot_be_watched_the_engine_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(process_id: int) -> int:
        raise PermissionError("seccomp")

    monkeypatch.setattr(processes.os, "pidfd_open", refuse)
    ended = asyncio.Event()
    ExitWatch([7], ended.set).close()
    await asyncio.sleep(0.01)
    assert not ended.is_set()
    assert [record.getMessage() for record in caplog.records] == ["process 7 is not watched: seccomp"]


async def test_one_that_has_ended_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    def gone(process_id: int) -> int:
        raise ProcessLookupError(process_id)

    monkeypatch.setattr(processes.os, "pidfd_open", gone)
    watch = ExitWatch([1], ended.set)
    await asyncio.wait_for(ended.wait(), 30)
    watch.close()
