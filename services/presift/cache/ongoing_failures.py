"""The failures of a server as states: each begins with one log line and ends with one, however many calls fail."""

from __future__ import annotations

import time
from collections.abc import Callable

# A state has ended when nothing failed for so long: some commands may succeed meanwhile, as reads do on a full server.
QUIET_S = 60.0


class OngoingFailures:
    """The reasons for which calls have failed within QUIET_S. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_s: dict[str, float] = {}

    def record_failure(self, reason: str) -> bool:
        """Record a failure; whether its reason is a new one."""
        is_new = reason not in self._seen_s
        self._seen_s[reason] = self._clock()
        return is_new

    def record_success(self) -> bool:
        """Record a success; whether the last reason has just ended."""
        if not self._seen_s or self._clock() - max(self._seen_s.values()) < QUIET_S:
            return False
        self._seen_s.clear()
        return True
