"""The span of an HTTP call: the caller's trace goes on, as gRPC's own instrumentation has it there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from starlette.datastructures import Headers

from presift.orchestrator.http.reply import Reply
from presift.rpc.telemetry import tracer


@contextmanager
def served(method: str, route: str, headers: Headers, reply: Reply) -> Iterator[None]:
    """Around one call; its status is known at the end. No path, query or header is told: they are the caller's."""
    with tracer().start_as_current_span(
        f"{method} {route}",
        context=propagate.extract(dict(headers)),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method, "http.route": route},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield
        span.set_attribute("http.response.status_code", reply.status)
        if reply.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
