"""An OpenTelemetry collector of the tests' own: it keeps the spans that services send, by OTLP over gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Seen:
    """A span as it came. `service` is without `presift-`, ids are hexadecimal; `links`: (trace id, span id)."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any] = field(hash=False)
    links: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> str:
        return f"{self.service}:{self.name.removeprefix('/presift.v1.')}"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self._since_ns = 0

    def forget(self) -> None:
        """Drop every span that began before now, also those still to come."""
        self._since_ns = time.time_ns()
        self.spans = [span for span in self.spans if span.start_ns >= self._since_ns]

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            told = {each.key: each.value.string_value for each in resource.resource.attributes}
            service = told["service.name"].removeprefix("presift-")
            came = (_seen(service, span) for scope in resource.scope_spans for span in scope.spans)
            self.spans.extend(span for span in came if span.start_ns >= self._since_ns)
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace_of(self, is_root: Callable[[Seen], bool], within_s: float = 60.0) -> list[Seen]:
        """The spans of the trace whose root is that, once no more have come for a while: services send theirs by
        themselves, each at its own time."""
        deadline, counts = time.monotonic() + within_s, [-1]
        while time.monotonic() < deadline:
            roots = [span for span in self.spans if not span.parent_id and is_root(span)]
            found = [span for span in self.spans if roots and span.trace_id == roots[0].trace_id]
            counts.append(len(found))
            if found and len(set(counts[-12:])) == 1:
                return found
            time.sleep(0.5)
        raise AssertionError("the trace did not come")


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request: Any, context: Any) -> Any:
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector and its address."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"127.0.0.1:{port}"
    server.stop(0)


def edges(spans: list[Seen]) -> set[tuple[str, str]]:
    """(parent, child) as SERVICE:NAME; of a call both sides are there: the caller's span, and in it the service's."""
    by_id = {span.span_id: span for span in spans}
    return {(by_id[span.parent_id].place, span.place) for span in spans if span.parent_id in by_id}


def _seen(service: str, span: Any) -> Seen:
    links = tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links)
    attributes = {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}
    return Seen(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        attributes,
        links,
    )
