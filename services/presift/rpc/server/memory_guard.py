"""Ends gRPC calls whose message is incomplete while the process is short of memory.

gRPC does not report how much of a message has arrived, so the bytes of incomplete messages cannot be counted. And up to
version 1.82.0 it buffers even a message beyond its limit whole before it refuses it (grpc/grpc#43012; 1.82.3 does not).
What can be measured is the memory of the process.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from presift.core.errors import DeadlineExceeded, Overloaded
from presift.telemetry.gauges import Gauge, gauge
from presift.telemetry.metrics import count

FIELD = "memory"
_EVERY_S = 0.1
_RETRY_AFTER_S = 5.0
# Of a container's limit: the rest is for what arrives within _EVERY_S, and for the page cache.
SHARE_OF_CONTAINER = 0.9
# Of cgroup v2 and v1: "max", or a number beyond any machine, without a limit.
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_NO_LIMIT = 2**60


def private_bytes() -> int:
    """The resident memory of this process without files that are mapped, such as weights; 0 without /proc."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except OSError:
        return 0
    return (resident - shared) * mmap.PAGESIZE


def container_limit() -> int | None:
    """The memory in bytes that this process should not exceed; None outside a container with a limit."""
    for path in map(Path, _CONTAINER_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdecimal() and int(text) < _NO_LIMIT:
            return int(int(text) * SHARE_OF_CONTAINER)
    return None


class MemoryGuard:
    """`limit_bytes` None: nothing is ended. `measure` gives the memory of the process in bytes."""

    def __init__(self, limit_bytes: int | None, measure: Callable[[], int] = private_bytes) -> None:
        self._limit = limit_bytes
        self._measure = measure
        # The calls that wait for their message, and since when.
        self._waiting: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def receiving(self, within_s: float) -> AsyncIterator[None]:
        """The block waits for a message. Raises DeadlineExceeded, and Overloaded while memory is short."""
        loop, was_ended = asyncio.get_running_loop(), False
        try:
            async with asyncio.timeout(within_s) as timeout:
                self._waiting[timeout] = loop.time()
                if self._timer is None:
                    self._timer = loop.call_later(_EVERY_S, self._look)
                try:
                    yield
                finally:
                    was_ended = self._waiting.pop(timeout, None) is None
        except TimeoutError:
            if was_ended:
                count("presift.received.refused", field=FIELD)
                raise Overloaded(FIELD, self._measure(), f"<= {self._limit} bytes", _RETRY_AFTER_S) from None
            raise DeadlineExceeded(f"the request's message did not arrive within {within_s:g} s") from None

    def gauges(self) -> tuple[Gauge, ...]:
        """What it compares."""
        return (
            gauge("presift.memory.used.bytes", lambda: self._measure() or None),
            gauge("presift.memory.limit.bytes", lambda: self._limit),
        )

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        # A message that has just begun is most often short, and complete in a moment.
        late = [timeout for timeout, since in self._waiting.items() if since + _EVERY_S <= loop.time()]
        if late and self._limit is not None and self._measure() > self._limit:
            for timeout in late:
                if not timeout.expired():  # its own time may have ended in this iteration of the loop
                    del self._waiting[timeout]
                    timeout.reschedule(loop.time())
        self._timer = loop.call_later(_EVERY_S, self._look) if self._waiting else None
