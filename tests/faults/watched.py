"""Runs a service as `python -m MODULE FLAGS` would, and says on SIGUSR1 how many asyncio tasks it has, for how long its
event loop stood still, and how many objects its garbage collections leave out.

`python -m watched MODULE FLAGS`, with FAULTS_TASKS_FILE in the environment: the file gets one line, "TASKS STALL
OBJECTS NUMBER", by signal NUMBER. STALL is the longest stall since the last signal, in seconds of processor time of the
loop's thread: other processes on a busy machine do not prolong it. A process cannot be asked from outside, and no
service needs such a door in production.
"""

from __future__ import annotations

import asyncio
import gc
import os
import runpy
import signal
import sys
import time
from itertools import count
from pathlib import Path
from types import FrameType

from presift.telemetry import loop_stalls

FILE_VARIABLE = "FAULTS_TASKS_FILE"
_SLEEP_S = 0.01


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
        fresh.write_text(f"{tasks} {stall_s:.6f} {gc.get_freeze_count()} {next(numbers)}")
        if stalls is not None:
            stalls.begin()  # counting the objects has taken 25 ms
        fresh.replace(path)  # last: whoever reads it may ask again at once

    signal.signal(signal.SIGUSR1, tell)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
