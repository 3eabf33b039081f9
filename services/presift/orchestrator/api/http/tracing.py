"""The span of an HTTP call: the caller's trace goes on, as gRPC's own instrumentation has it there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from starlette.datastructures import Headers

from presift.orchestrator.api.http.sse import Reply
from presift.telemetry.metrics import count
from presift.telemetry.propagation import TraceParentPropagator
from presift.telemetry.tracing import tracer

# Of all paths that there are not: they are the caller's.
OTHER = "other"


@contextmanager
def served(method: str, route: str, headers: Headers, reply: Reply) -> Iterator[None]:
    """Around one call; its status is known at the end. No path, query or header is told: they are the caller's."""
    with tracer().start_as_current_span(
        f"{method} {route}",
        context=TraceParentPropagator().extract(dict(headers)),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method, "http.route": route},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield
        span.set_attribute("http.response.status_code", reply.status)
        if reply.error:
            span.set_attribute("error.type", reply.error)
        # A stream that broke has the status that it began with.
        if reply.status >= 500 or (reply.error and reply.status < 400):
            span.set_status(trace.StatusCode.ERROR)
    told(route, reply.status)


def told(route: str, status: int) -> None:
    """Count a reply; 0 is that of a caller who left before it."""
    count("presift.http.replies", http_route=route, status=str(status or "none"))
