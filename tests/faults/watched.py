"""Runs a service as `python -m MODULE FLAGS` would, and says on SIGUSR1 how many asyncio tasks it has.

`python -m watched MODULE FLAGS`, with FAULTS_TASKS_FILE in the environment: the file gets one line, "TASKS NUMBER", by
signal NUMBER. A process cannot be asked from outside, and no service needs such a door in production.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
import sys
from itertools import count
from pathlib import Path
from types import FrameType

FILE_VARIABLE = "FAULTS_TASKS_FILE"


def main() -> None:
    path, numbers = Path(os.environ[FILE_VARIABLE]), count(1)

    def tell(number: int, frame: FrameType | None) -> None:
        try:
            tasks = len(asyncio.all_tasks(asyncio.get_running_loop()))
        except RuntimeError:  # no loop runs (yet, or any more)
            tasks = 0
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{tasks} {next(numbers)}")
        fresh.replace(path)

    signal.signal(signal.SIGUSR1, tell)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
