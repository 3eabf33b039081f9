"""Warnings that each request may cause, such as those of a draft that is gone: one a minute, not one a request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_EVERY_S = 60.0


class RepeatedWarnings:
    """Logs the first warning of a kind at once, then at most one a minute, with the number of those left out.

    The number of kinds must be bounded. `clock` is monotonic, in seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._next_s: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warn(self, kind: str, message: str) -> None:
        now_s = self._clock()
        if now_s < self._next_s.get(kind, now_s):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._next_s[kind] = now_s + _EVERY_S
        left_out = self._left_out.pop(kind, 0)
        self._log.warning("%s%s", message, f" ({left_out} more since the last such line)" if left_out else "")
