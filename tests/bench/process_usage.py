"""Processor time and memory of this process and its children."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil


class Used:
    """Wall and processor seconds since it was made, of this process and its children."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), processor_s()

    def so_far(self) -> dict[str, float]:
        return {
            "wall_s": round(time.perf_counter() - self._wall, 3),
            "cpu_s": round(processor_s() - self._processor, 2),
        }


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def processor_s() -> float:
    """Of all of them that live now."""
    total = 0.0
    for process in _processes():
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def memory_mib() -> dict[str, float]:
    """Resident memory, and with shared pages divided among those that share them (PSS)."""
    found = [process.memory_full_info() for process in _processes()]
    return {name: round(sum(getattr(each, name) for each in found) / 2**20, 1) for name in ("rss", "pss")}
