"""Writes log lines in a thread of its own: whoever reads a service's log may stop, and must not stop the service."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from queue import Full, Queue
from threading import Thread

# Lines that may wait to be written; further ones are dropped.
MAX_WAITING = 1_000
# Seconds that the end of the process waits for them.
_FLUSH_S = 1.0


class LogWriter(logging.Handler):
    """Writes to a file descriptor. `on_drop` is called for each line that is dropped, in any thread.

    Not through `sys.stderr`: at its end Python would wait for the lock that a blocked write holds.
    """

    def __init__(self, descriptor: int, on_drop: Callable[[], None]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._on_drop = on_drop
        self._lines: Queue[bytes] = Queue(MAX_WAITING)
        Thread(target=self._write_all, name="write the log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Not in the thread: trace ids are those of the caller's context.
            self._lines.put_nowait(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Full:
            self._on_drop()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all lines are written, but not long."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH_S)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:  # nobody reads any more
                self._on_drop()
            finally:
                self._lines.task_done()
