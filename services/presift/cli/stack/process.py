"""One local service as a child process: started, watched until it says it is ready, stopped. Leaves nothing behind."""

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
# How services, Python and argparse tell what ended them; of a long log only the end is looked at.
_ERROR = re.compile(
    r"^\S+ \S+ ERROR \S+ (?P<logged>.+)$|^(?P<raised>[\w.]*(?:Error|Exception)(?:: .+)?)$|: error: (?P<flag>.+)$"
)
_TAIL_BYTES = 65_536


def error_in(line: str) -> str:
    """What a line of a service's log tells of an error, empty where that is nothing."""
    if line.startswith("{"):
        with suppress(ValueError, AttributeError):
            told = json.loads(line)
            return str(told.get("message", "")) if told.get("level") == "ERROR" else ""
    match = _ERROR.search(line)
    return match[match.lastgroup] if match and match.lastgroup else ""


class ServiceFailed(RuntimeError):
    """A service ended before it was ready, or while it was needed; the message names its log."""


class ServiceProcess:
    """`python -m MODULE ARGUMENTS`; what it prints goes to `log`. It ends with us, however we end (Linux)."""

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
            start_new_session=True,  # Ctrl-C is for us alone: we stop the services in order
        )
        self._reader = threading.Thread(target=self._read, name=f"{name} output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> str:
        """The address it serves on. Raises ServiceFailed if it ends first or takes longer."""
        waited = 0.0
        while not self._ready.wait(0.1):
            waited += 0.1
            if self._process.poll() is not None:
                raise ServiceFailed(self.obituary())
            if waited > timeout_s:
                raise ServiceFailed(f"{self.name} was not ready within {timeout_s:g} s; see {self.log}")
        return self.address

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def obituary(self) -> str:
        """How it ended, with the last error that it told, and where the rest is."""
        error = self._last_error()
        return f"{self.name} ended with code {self._process.returncode}{error and f': {error}'}; see {self.log}"

    def stop(self, timeout_s: float) -> int:
        """SIGTERM and wait for the drain; SIGKILL after `timeout_s`. Returns its exit code."""
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
        """Empty where it told none since it was started."""
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
