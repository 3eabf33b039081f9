"""Runs processes one after the other or several at once, each within a time limit, and all of them within a budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from presift.cache import die_with_parent

# No process is started for less than this.
_LEAST_S = 20.0
_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """A command, by its path. `runs_alone`: no other job runs meanwhile. Its output goes to the file `log`."""

    name: str
    command: Sequence[str]
    log: Path
    limit_s: float
    runs_alone: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended. `code` is its exit status, None if it was killed: at its own limit, or when the budget was spent
    (`is_out_of_budget`)."""

    job: Job
    code: int | None
    seconds: float
    is_out_of_budget: bool = False


@dataclass(slots=True, eq=False)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started_s: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_s


def run(jobs: Sequence[Job], budget_s: float, at_once: int, report: Callable[[Ending], None]) -> None:
    """Run `jobs` in their order, at most `at_once` together, and report each as it ends. Jobs for which the budget
    leaves no time are not started. Whatever raises, no process of a job is left.
    """
    end_s = time.monotonic() + budget_s
    waiting, running = list(jobs), list[_Running]()
    try:
        while waiting or running:
            if waiting and end_s - time.monotonic() < _LEAST_S:
                waiting.clear()
            while waiting and _has_room(waiting[0], running, at_once):
                running.append(_start(waiting.pop(0)))
            for each in list(running):
                if (ending := _ending(each, end_s)) is not None:
                    running.remove(each)
                    report(ending)
            time.sleep(_INTERVAL_S)
    finally:
        for each in running:
            _kill(each.process)


def _has_room(job: Job, running: Sequence[_Running], at_once: int) -> bool:
    if job.runs_alone or any(each.job.runs_alone for each in running):
        return not running
    return len(running) < at_once


def _start(job: Job) -> _Running:
    command = [sys.executable, die_with_parent.__file__, str(os.getpid()), *job.command]
    with job.log.open("wb") as log:
        # A session of its own holds its children too, also those whose parent has ended.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    return _Running(job, process)


def _ending(each: _Running, end_s: float) -> Ending | None:
    is_out_of_budget = time.monotonic() > end_s
    code = each.process.poll()
    if code is None and each.seconds < each.job.limit_s and not is_out_of_budget:
        return None
    # Also after it has ended: its children may be left.
    _kill(each.process)
    return Ending(each.job, code, each.seconds, is_out_of_budget and code is None)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill everything in the session of `process`, and wait for it."""
    deadline_s = time.monotonic() + 10.0
    while members := list(_session(process.pid)):
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # As a zombie it would remain a member.
        process.poll()
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.02)
    # A process that waits for the GPU's driver cannot be killed.
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


def _session(leader: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError, IndexError):
            # After the name, which may hold anything: state, parent, group, session.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                yield int(entry.name)
