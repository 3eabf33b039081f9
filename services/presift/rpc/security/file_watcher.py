"""Reads certificate and token files again when they change, and keeps the old value while they are invalid."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from presift.core.errors import PresiftError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Unchanged invalid files are read again after so long: a write may leave their time and size as they were.
RETRY_S = 5.0

Signature = tuple[tuple[int, int, int] | None, ...]


class FileWatcher(Generic[T]):
    """The value that `read` makes from the files at `paths`; without paths it never changes. Thread-safe.

    `read` raises PresiftError, without secrets, for invalid files. The first read must succeed. After a later failure
    the previous value stays in use, and the error is logged once. Invalid files are read again when they change, and
    every RETRY_S: reading thousands of keys at each call would stop all calls. They are looked at once in
    `every_s` seconds at most.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], every_s: float = 0.0) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._logged = ""
        self._retry_at = math.inf
        self._every_s = every_s
        self._look_at = time.monotonic() + every_s
        self._signature = self._look()
        self._value = read()

    def current(self) -> T:
        """The current value; the same object while nothing changed. A look takes a few microseconds: one stat per
        file."""
        with self._lock:
            now = time.monotonic()
            if now < self._look_at:
                return self._value
            self._look_at = now + self._every_s
            signature = self._look()
            if signature != self._signature or now >= self._retry_at:
                self._renew(signature)
            return self._value

    def _renew(self, signature: Signature) -> None:
        # The signature is older than the read: a write in between is noticed at the next call.
        self._signature = signature
        try:
            self._value = self._read()
        except PresiftError as error:
            self._retry_at = time.monotonic() + RETRY_S
            if error.message != self._logged:
                self._logged = error.message
                log.warning("changed files are invalid, the previous ones stay in use: %s", error.message)
            return
        self._retry_at, self._logged = math.inf, ""
        log.info("reloaded: %s", ", ".join(str(path) for path in self._paths))

    def _look(self) -> Signature:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_file(setting: str, path: Path) -> bytes:
    """The bytes of a file. Raises PresiftError with the setting and the path, never the content."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PresiftError(f"{setting}: cannot read {path} ({error.strerror})") from None
