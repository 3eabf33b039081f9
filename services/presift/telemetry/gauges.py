"""Gauges: how full a service is, read when somebody collects, on the event loop that they belong to.

A collection runs in a thread of its own, which must not look at queues while they change.
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

# A value and its attributes, by short words.
Reading = tuple[float, Attributes]

# A collection asks for one gauge after the other: all are read at once, and are the same for so long.
_SAME_FOR_S = 0.2
# For an event loop that hangs: the collection goes on without its gauges.
_LOOP_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A declared gauge and how it is read: every reading is one value with its attributes."""

    name: str
    read: Callable[[], Iterable[Reading]]


def gauge(name: str, read: Callable[[], float | None], /, **words: str) -> Gauge:
    """A gauge of one value, None while there is none. Raises KeyError for what is not declared."""
    checked(name, words)
    return Gauge(declared(name, "gauge").name, lambda: () if (value := read()) is None else ((value, words),))


def gauges(name: str, read: Callable[[], Iterable[Reading]]) -> Gauge:
    """A gauge of as many values as there are attributes. Raises KeyError for a name that is not declared."""
    return Gauge(declared(name, "gauge").name, read)


class _Observed:
    """Gauges that are read together, on their loop."""

    def __init__(self, gauges: Iterable[Gauge], loop: asyncio.AbstractEventLoop) -> None:
        self._gauges = tuple(gauges)
        self._loop = loop
        self._lock = Lock()
        self._read_at = float("-inf")
        self._values: dict[str, list[Observation]] = {}

    def values(self, name: str) -> list[Observation]:
        with self._lock:
            if time.monotonic() - self._read_at > _SAME_FOR_S:
                self._values = self._read_there()
                self._read_at = time.monotonic()
            return self._values.get(name, [])

    def _read_there(self) -> dict[str, list[Observation]]:
        if _running_loop() is self._loop:
            return self._read()
        try:
            return asyncio.run_coroutine_threadsafe(self._reading(), self._loop).result(_LOOP_S)
        except (TimeoutError, CancelledError, RuntimeError):  # it hangs, or has ended
            return {}

    async def _reading(self) -> dict[str, list[Observation]]:
        return self._read()

    def _read(self) -> dict[str, list[Observation]]:
        values: dict[str, list[Observation]] = {}
        for each in self._gauges:
            try:
                found = [Observation(value, checked(each.name, words)) for value, words in each.read()]
            except Exception:  # a defect of ours, which must not take the others along
                log.exception("%s cannot be read", each.name)
            else:
                values.setdefault(each.name, []).extend(found)
        return values


_observed: list[_Observed] = []


@contextmanager
def observed(*gauges: Gauge) -> Iterator[None]:
    """While the block runs these gauges are told to whoever collects. To be entered on the event loop."""
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
    """The one gauge of this name; what it reads is whatever is observed then."""
    metric = declared(name, "gauge")
    tell = partial(_told, name)
    metrics.get_meter(SCOPE).create_observable_gauge(metric.name, [tell], metric.unit, metric.description)


def _told(name: str, options: CallbackOptions) -> Iterable[Observation]:
    return [value for each in list(_observed) for value in each.values(name)]
