"""Runs a service as `python -m MODULE FLAGS` would, and says on SIGUSR1 how many asyncio tasks it has, for how long its
event loop stood still, how many objects its garbage collections leave out, and what its clock shows.

`python -m watched MODULE FLAGS`, with FAULTS_TASKS_FILE in the environment: the file gets one line, "TASKS STALL
OBJECTS CLOCK NUMBER", by signal NUMBER. STALL is the longest stall since the last signal, in seconds of processor time
of the loop's thread: other processes on a busy machine do not prolong it. CLOCK is in seconds since 1970. A process
cannot be asked from outside, and no service needs this in production.

SIGUSR2 replaces its stderr by a full pipe that nobody reads, and SIGUSR2 again ends that. With FAULTS_NAMES_FILE in the
environment, host names are looked up in that file first.
"""

from __future__ import annotations

import asyncio
import gc
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from presift.telemetry import loop_stalls

FILE_VARIABLE, NAMES_VARIABLE = "FAULTS_TASKS_FILE", "FAULTS_NAMES_FILE"
_SLEEP_S = 0.01
_STDERR, _PIECE_BYTES = 2, 512


class ProcessorStalls(loop_stalls.LoopStalls):
    """Stalls by the processor time of the loop's thread. The last one that was made is the service's."""

    newest: ProcessorStalls | None = None

    def __init__(self) -> None:
        super().__init__()
        ProcessorStalls.newest = self
        self._began_s = 0.0

    async def measure(self) -> None:
        while True:
            self._began_s = time.thread_time()
            await asyncio.sleep(_SLEEP_S)
            self.add(time.thread_time() - self._began_s)

    def take_s(self) -> float:
        """The longest one since the last call, seconds; also one that has not ended. In the loop's thread."""
        longest_s = max(self.longest_s(), time.thread_time() - self._began_s)
        self._stalls.clear()
        return longest_s

    def begin(self) -> None:
        """Measure from now on. In the loop's thread."""
        self._began_s = time.thread_time()


class Stderr:
    """The process's stderr: as it was, or a full pipe that nobody reads."""

    def __init__(self) -> None:
        self._pipe: tuple[int, int] | None = None

    def turn(self, number: int, frame: FrameType | None) -> None:
        """From the one to the other."""
        if self._pipe is None:
            self._pipe = reading, writing = os.pipe()
            self._sound = os.dup(_STDERR)
            os.set_blocking(writing, False)
            _until_blocked(lambda: os.write(writing, b"." * _PIECE_BYTES))
            os.set_blocking(writing, True)
            os.dup2(writing, _STDERR)
            return
        reading, writing = self._pipe
        os.dup2(self._sound, _STDERR)
        os.set_blocking(reading, False)
        # Whoever writes still has the pipe; what does not fit any more is lost to it.
        _until_blocked(lambda: os.read(reading, _PIECE_BYTES))
        for descriptor in (reading, writing, self._sound):
            os.close(descriptor)
        self._pipe = None


def _until_blocked(act: Callable[[], object]) -> None:
    with suppress(BlockingIOError):
        while True:
            act()


def use_names(path: Path) -> None:
    """Look up the names of that file, which has a line `NAME ADDRESS ...` for each, in it. A name without an address
    fails as if no name server answered; any other name is looked up as usual."""
    system = socket.getaddrinfo

    def look_up(host: Any, port: Any, *rest: Any, **options: Any) -> list[Any]:
        known = {name: addresses for name, *addresses in map(str.split, path.read_text().splitlines())}
        if host not in known:
            return system(host, port, *rest, **options)
        if not known[host]:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [found for address in known[host] for found in system(address, port, *rest, **options)]

    socket.getaddrinfo = look_up


def main() -> None:
    path, numbers = Path(os.environ[FILE_VARIABLE]), count(1)
    loop_stalls.LoopStalls = ProcessorStalls

    def tell(number: int, frame: FrameType | None) -> None:
        try:
            tasks = len(asyncio.all_tasks(asyncio.get_running_loop()))
        except RuntimeError:  # no loop runs (yet, or any more)
            tasks = 0
        stalls = ProcessorStalls.newest
        stall_s = 0.0 if stalls is None else stalls.take_s()
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{tasks} {stall_s:.6f} {gc.get_freeze_count()} {time.time():.0f} {next(numbers)}")
        if stalls is not None:
            stalls.begin()  # counting the objects has taken 25 ms
        fresh.replace(path)  # last: whoever reads it may ask again at once

    signal.signal(signal.SIGUSR1, tell)
    signal.signal(signal.SIGUSR2, Stderr().turn)
    if names := os.environ.get(NAMES_VARIABLE):
        use_names(Path(names))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
