"""Telling metrics: `count`, `record` and `observed` take the names of `declared.py` and refuse all others.

Attributes are given by short words: `route` is `presift.route`; see `attribute`. Counts and values may be told from any
thread; gauges are read on the event loop that `observed` was entered on, when somebody collects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation

from presift.rpc.declared import DECLARED, Metric
from presift.rpc.telemetry import SCOPE

Attributes = dict[str, str]
# A value and its attributes, by short words.
Reading = tuple[float, Attributes]

_BY_NAME = {metric.name: metric for metric in DECLARED}
# Of OpenTelemetry's conventions.
_CONVENTIONS = {
    "genai_operation": "gen_ai.operation.name",
    "model": "gen_ai.request.model",
    "token_type": "gen_ai.token.type",
    "error": "error.type",
}
# A collection asks for one gauge after the other: all are read at once, and are the same for so long.
_SAME_FOR_S = 0.2
# For an event loop that hangs: the collection goes on without its gauges.
_LOOP_S = 1.0


def attribute(word: str) -> str:
    """The attribute's full name."""
    return _CONVENTIONS.get(word, f"presift.{word}")


def count(name: str, amount: int = 1, /, **words: str) -> None:
    """Add to a declared counter. Raises KeyError for a name or attribute that is not declared."""
    _counter(name).add(amount, _checked(name, words))


def record(name: str, value: float, /, **words: str) -> None:
    """Add a value to a declared histogram. Raises KeyError for a name or attribute that is not declared."""
    _histogram(name).record(value, _checked(name, words))


@dataclass(frozen=True, slots=True)
class Gauge:
    """A declared gauge and how it is read: every reading is one value with its attributes."""

    name: str
    read: Callable[[], Iterable[Reading]]


def gauge(name: str, read: Callable[[], float | None], /, **words: str) -> Gauge:
    """A gauge of one value, None while there is none. Raises KeyError for what is not declared."""
    _checked(name, words)
    return Gauge(_declared(name, "gauge").name, lambda: () if (value := read()) is None else ((value, words),))


def gauges(name: str, read: Callable[[], Iterable[Reading]]) -> Gauge:
    """A gauge of as many values as there are attributes. Raises KeyError for a name that is not declared."""
    return Gauge(_declared(name, "gauge").name, read)


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
            found = [Observation(value, _checked(each.name, words)) for value, words in each.read()]
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


def _checked(name: str, words: Attributes) -> Attributes:
    found = {attribute(word): value for word, value in words.items()}
    unknown = set(found) - set(_BY_NAME[name].attributes)
    if unknown:
        raise KeyError(f"{name} has no attribute {', '.join(sorted(unknown))}")
    return found


@cache
def _counter(name: str) -> Counter:
    metric = _declared(name, "counter")
    return metrics.get_meter(SCOPE).create_counter(metric.name, metric.unit, metric.description)


@cache
def _histogram(name: str) -> Histogram:
    metric = _declared(name, "histogram")
    return metrics.get_meter(SCOPE).create_histogram(
        metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=[*map(float, metric.buckets)]
    )


@cache
def _instrument(name: str) -> None:
    """The one gauge of this name; what it reads is whatever is observed then."""
    metric = _declared(name, "gauge")
    tell = partial(_told, name)
    metrics.get_meter(SCOPE).create_observable_gauge(metric.name, [tell], metric.unit, metric.description)


def _told(name: str, options: CallbackOptions) -> Iterable[Observation]:
    return [value for each in list(_observed) for value in each.values(name)]


def _declared(name: str, kind: str) -> Metric:
    metric = _BY_NAME[name]
    if metric.kind != kind:
        raise KeyError(f"{name} is a {metric.kind}")
    return metric
