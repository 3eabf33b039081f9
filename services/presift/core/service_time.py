"""The typical time of a request, and from it when a refused caller should retry."""

from __future__ import annotations

_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 0.1, 30.0
# The weight of the newest request in the moving average.
_NEWEST_SHARE = 0.2


class ServiceTime:
    """An exponentially weighted moving average of seconds. It starts at one second.

    One thread may observe while others read.
    """

    def __init__(self) -> None:
        self.typical_s = 1.0

    def observe(self, seconds: float) -> None:
        """Add the time that one request took."""
        self.typical_s += _NEWEST_SHARE * (seconds - self.typical_s)

    def retry_after_s(self, waiting: int, parallel: int = 1) -> float:
        """When `waiting` requests will have been served, `parallel` at a time: 0.1 to 30 seconds."""
        return min(_LONGEST_RETRY_S, max(_SHORTEST_RETRY_S, waiting * self.typical_s / parallel))
