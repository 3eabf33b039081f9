"""What reading an input costs, and how that grows: processor time and memory may grow as the input does, no faster.

A reader is measured at sizes that grow by four. It fails if

- its time grows faster: over two steps in a row by more than the size to the power of 1.4, as quadratic time does and
  n log n does not. A step that is only due to a threshold does not come twice;
- its time exceeds `fixed_ms + ms_per_kib x KiB`, or its memory `fixed_bytes + bytes_per_byte x bytes`.

Time is that of this thread's processor, so other processes add none. It varies nevertheless (caches, frequency), by
less than the bounds' reserve. What seems to fail is measured again, several times, and the least counts.
"""

from __future__ import annotations

import ctypes
import gc
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, starmap
from pathlib import Path

from .growth import Growth

STEP = 4
# Time grows as the size to this power at most. Quadratic: 2; n log n at these sizes: less than 1.15.
MOST_POWER = 1.4
# Shorter times are those of calls and of the clock.
LEAST_S = 1e-4
_LEAST_BYTES = 512
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a reader: processor time and memory by the size of its input."""

    ms_per_kib: float
    bytes_per_byte: float
    fixed_ms: float = 20.0
    fixed_bytes: int = 4 << 20

    def seconds(self, size: int) -> float:
        return (self.fixed_ms + self.ms_per_kib * size / 1024) / 1000

    def bytes(self, size: int) -> float:
        return self.fixed_bytes + self.bytes_per_byte * size


@dataclass(frozen=True, slots=True)
class Cost:
    """The time that an input of `size` bytes took, in which a piece stands `copies` times."""

    copies: int
    size: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds * 1000:.1f} ms for {self.size:,} bytes"


def complaint(
    read: Callable[[bytes], object], growth: Growth, bounds: Bounds, most_bytes: int, enough_s: float = 0.1
) -> str:
    """What is wrong with the cost of `read`; empty if nothing is. Measured until the input has `most_bytes`, or takes
    `enough_s`."""
    costs, data = list[Cost](), b""
    for copies, data in _grown(growth, most_bytes):
        costs.append(Cost(copies, len(data), seconds(read, data)))
        # A step before the last one may have been hidden by noise, which made the smallest input slow.
        if last_step_is_too_fast(costs) or costs[-1].seconds > bounds.seconds(len(data)):
            costs[-3:] = [_again(read, growth, cost) for cost in costs[-3:]]
            if grows_too_fast(costs):
                return f"time grows faster than the input: {', '.join(map(str, costs[-3:]))}"
            if costs[-1].seconds > (most_s := bounds.seconds(len(data))):
                return f"{costs[-1]}; at most {most_s * 1000:.0f} ms"
        if costs[-1].seconds > enough_s:
            break
    held, most = peak_bytes(read, data), bounds.bytes(len(data))
    return f"{held:,} bytes of memory for {len(data):,} bytes; at most {most:,.0f}" if held > most else ""


def grows_too_fast(costs: Sequence[Cost]) -> bool:
    """Whether the time grew faster than the size in each of the last two steps."""
    powers = list(starmap(_power, pairwise(costs[-3:])))
    return len(powers) == 2 and min(powers) > MOST_POWER


def last_step_is_too_fast(costs: Sequence[Cost]) -> bool:
    """Whether the time grew faster than the size in the last step, with another one before it."""
    return len(costs) > 2 and _power(*costs[-2:]) > MOST_POWER


def _power(before: Cost, after: Cost) -> float:
    return math.log(max(after.seconds, LEAST_S) / max(before.seconds, LEAST_S)) / math.log(after.size / before.size)


def _grown(growth: Growth, most_bytes: int) -> Iterator[tuple[int, bytes]]:
    copies, size = 1, 0
    while copies <= most_bytes and len(data := growth(copies)) <= most_bytes:
        if len(data) >= max(_LEAST_BYTES, (STEP - 1) * size):  # what is repeated may be short beside the rest
            size = len(data)
            yield copies, data
        copies *= STEP


def _again(read: Callable[[bytes], object], growth: Growth, cost: Cost) -> Cost:
    data = growth(cost.copies)
    return Cost(cost.copies, len(data), min(seconds(read, data) for _ in range(_TRIES)))


def seconds(read: Callable[[bytes], object], data: bytes) -> float:
    """Processor time of this thread. The collector of garbage waits meanwhile: it would count other tests' objects."""
    gc.disable()
    try:
        began = time.thread_time()
        read(data)
        return time.thread_time() - began
    finally:
        gc.enable()


def peak_bytes(read: Callable[[bytes], object], data: bytes) -> int:
    """The most memory that was allocated at once. Python's allocator counts its own exactly; by the process's resident
    memory the kernel also counts what native libraries take: so what is free in the process is returned before."""
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident_bytes("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    read(data)
    resident = _resident_bytes("VmHWM") - before
    tracemalloc.start()
    try:
        read(data)
        return max(resident, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
