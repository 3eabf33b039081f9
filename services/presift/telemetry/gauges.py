"""Gauges, such as queue lengths: read at each collection, on the event loop that owns the values.

A collection runs in another thread, which must not read queues while they change. OpenTelemetry calls gauge
callbacks in that thread and cannot run them on an event loop, so this module does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from presift.telemetry.metrics import Attributes, checked, declared
from presift.telemetry.tracing import SCOPE

# A value and its attributes, with short names.
Reading = tuple[float, Attributes]

# A collection reads one gauge after the other. All are read at once, and kept for this long.
_SAME_FOR_S = 0.2
# If the event loop does not answer in time, the collection continues without its gauges.
_LOOP_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A declared gauge and how to read it. Each reading is a value with its attributes."""

    name: str
    read: Callable[[], Iterable[Reading]]


def gauge(name: str, read: Callable[[], float | None], /, **attributes: str) -> Gauge:
    """A gauge with one value, or None for no value. Raises KeyError for undeclared names and attributes."""
    checked(name, attributes)
    return Gauge(declared(name, "gauge").name, lambda: () if (value := read()) is None else ((value, attributes),))


def gauges(name: str, read: Callable[[], Iterable[Reading]]) -> Gauge:
    """A gauge with one value per set of attributes. Raises KeyError for an undeclared name."""
    return Gauge(declared(name, "gauge").name, read)


class _Observed:
    """Gauges that are read together, on their event loop."""

    def __init__(self, gauges: Iterable[Gauge], loop: asyncio.AbstractEventLoop) -> None:
        self._gauges = tuple(gauges)
        self._loop = loop
        self._lock = Lock()
        self._read_at = float("-inf")
        self._values: dict[str, list[Observation]] = {}

    def values(self, name: str) -> list[Observation]:
        with self._lock:
            if time.monotonic() - self._read_at > _SAME_FOR_S:
                self._values = self._read_on_loop()
                self._read_at = time.monotonic()
            return self._values.get(name, [])

    def _read_on_loop(self) -> dict[str, list[Observation]]:
        if _running_loop() is self._loop:
            return self._read()
        try:
            return asyncio.run_coroutine_threadsafe(self._reading(), self._loop).result(_LOOP_S)
        except (TimeoutError, CancelledError, RuntimeError):  # the loop hangs, or has ended
            return {}

    async def _reading(self) -> dict[str, list[Observation]]:
        return self._read()

    def _read(self) -> dict[str, list[Observation]]:
        values: dict[str, list[Observation]] = {}
        for each in self._gauges:
            try:
                found = [Observation(value, checked(each.name, attributes)) for value, attributes in each.read()]
            except Exception:  # a bug in one gauge must not hide the others
                log.exception("cannot read %s", each.name)
            else:
                values.setdefault(each.name, []).extend(found)
        return values


_observed: list[_Observed] = []


@contextmanager
def observed(*gauges: Gauge) -> Iterator[None]:
    """Export these gauges while the block runs. Enter it on the event loop."""
    together = _Observed(gauges, asyncio.get_running_loop())
    _observed.append(together)
    for each in gauges:
        _instrument(each.name)
    try:
        yield
    finally:
        _observed.remove(together)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@cache
def _instrument(name: str) -> None:
    """Create the instrument of this name; it reads the gauges that are observed at the time."""
    metric = declared(name, "gauge")
    read = partial(_values, name)
    metrics.get_meter(SCOPE).create_observable_gauge(metric.name, [read], metric.unit, metric.description)


def _values(name: str, options: CallbackOptions) -> Iterable[Observation]:
    return [value for each in list(_observed) for value in each.values(name)]
