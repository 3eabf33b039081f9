"""Files that change under a running service: certificates, tokens. Read again when they did, and only taken whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from presift.core.errors import PresiftError

log = logging.getLogger(__name__)

T = TypeVar("T")

Signature = tuple[tuple[int, int, int] | None, ...]


class FileWatcher(Generic[T]):
    """What `read` makes of the files at `paths` (of none: a value that never changes). Thread-safe.

    `read` raises PresiftError for what it does not take, in words without secrets. The first reading must succeed;
    later the earlier value stays in force, and that is logged once.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._told = ""
        self._signature = self._look()
        self._value = read()

    def current(self) -> T:
        """The value in force; the same object while nothing changed. A few microseconds: one stat a file."""
        with self._lock:
            signature = self._look()
            if signature != self._signature:
                self._renew(signature)
            return self._value

    def _renew(self, signature: Signature) -> None:
        # The signature is taken before the reading: what is written meanwhile is seen at the next look.
        try:
            self._value = self._read()
        except PresiftError as error:  # the signature stays old: half-written files are tried again
            if error.message != self._told:
                self._told = error.message
                log.warning("not taken, the earlier stays in force: %s", error.message)
            return
        self._signature, self._told = signature, ""
        log.info("read again: %s", ", ".join(str(path) for path in self._paths))

    def _look(self) -> Signature:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_file(setting: str, path: Path) -> bytes:
    """Its bytes. Raises PresiftError, naming the setting and the path, never what is in it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PresiftError(f"{setting}: {path} cannot be read ({error.strerror})") from None
