"""Stages of a request: each is a span of its trace and a sample of the stage-duration histogram."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span

from presift.telemetry.metrics import record
from presift.telemetry.tracing import span


@contextmanager
def stage(name: str) -> Iterator[Span]:
    """Trace and time the block as stage `name`. The time is recorded even if the block fails."""
    started = time.perf_counter()
    with span(name) as current:
        try:
            yield current
        finally:
            record("presift.orchestrator.stage.duration", time.perf_counter() - started, stage=name)
