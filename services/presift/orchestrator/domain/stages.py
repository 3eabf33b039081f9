"""Stages of a request in the orchestrator: each is a span of its trace, and its time a value of the histogram."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span

from presift.telemetry.metrics import record
from presift.telemetry.tracing import span


@contextmanager
def stage(name: str) -> Iterator[Span]:
    """A stage, until the block ends; its time is told however that is."""
    started = time.perf_counter()
    with span(name) as current:
        try:
            yield current
        finally:
            record("presift.orchestrator.stage.duration", time.perf_counter() - started, stage=name)
