"""One service as a child process: starts it, waits until it is ready, and stops it. It never outlives its parent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from presift.cache import die_with_parent

_READY = " ready on "
_HTTP = " takes HTTP on "
# The last error as services, Python and argparse print it. Only the end of a long log is read.
_ERROR = re.compile(
    r"^\S+ \S+ ERROR \S+ (?P<logged>.+)$|^(?P<raised>[\w.]*(?:Error|Exception)(?:: .+)?)$|: error: (?P<flag>.+)$"
)
_TAIL_BYTES = 65_536


def error_in(line: str) -> str:
    """The error message in a line of a service's log, empty if there is none."""
    if line.startswith("{"):
        with suppress(ValueError, AttributeError):
            record = json.loads(line)
            return str(record.get("message", "")) if record.get("level") == "ERROR" else ""
    match = _ERROR.search(line)
    return match[match.lastgroup] if match and match.lastgroup else ""


class ServiceFailed(RuntimeError):
    """A service ended before it was ready, or while it was still needed; the message names its log file."""


class ServiceProcess:
    """`python -m MODULE ARGUMENTS`, with its output in the file `log`. On Linux it ends with this process, even if this
    one is killed."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]):
        self.name = name
        self.log = log
        self.address = self.http_address = ""
        self._ready = threading.Event()
        self._log = log.open("ab")
        self._log_start = log.stat().st_size
        self._process = subprocess.Popen(
            [sys.executable, die_with_parent.__file__, str(os.getpid()), sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the services in order
        )
        self._reader = threading.Thread(target=self._read, name=f"{name} output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> str:
        """The address that it listens on. Raises ServiceFailed if it ends first or takes longer than `timeout_s`."""
        waited = 0.0
        while not self._ready.wait(0.1):
            waited += 0.1
            if self._process.poll() is not None:
                raise ServiceFailed(self.exit_report())
            if waited > timeout_s:
                raise ServiceFailed(f"{self.name} was not ready within {timeout_s:g} s; see {self.log}")
        return self.address

    def exit_code(self) -> int | None:
        """The exit code, None while the service runs."""
        return self._process.poll()

    def exit_report(self) -> str:
        """The exit code, the last error in the log, and the path of the log."""
        error = self._last_error()
        return f"{self.name} ended with code {self._process.returncode}{error and f': {error}'}; see {self.log}"

    def stop(self, timeout_s: float) -> int:
        """Send SIGTERM, wait for the drain, send SIGKILL after `timeout_s`. Returns the exit code."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(1.0)
        self._log.close()
        return self._process.returncode

    def _last_error(self) -> str:
        """The last error that was logged since the start, empty if there is none."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return next(filter(None, map(error_in, reversed(lines))), "").strip()

    def _read(self) -> None:
        stdout = self._process.stdout
        for line in stdout or ():
            text = line.decode(errors="replace").strip()
            if text.startswith("presift ") and _HTTP in text:
                self.http_address = text.partition(_HTTP)[2]
            if text.startswith("presift ") and _READY in text:
                self.address = text.partition(_READY)[2].partition(": ")[0]
                self._ready.set()
            self._log.write(line)
            self._log.flush()
