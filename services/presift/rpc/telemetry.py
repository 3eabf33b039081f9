"""OpenTelemetry: one trace per request across the services, one declared list of metrics. Exporters are off unless
an OTLP endpoint is configured; without one every call here is a no-op of the OpenTelemetry API.

Spans are named after the words of the architecture: tokenize, protect, route, cache, score, prefill, lookahead, select,
decode. Attributes hold counts, names and times: never prompt text, token ids or secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

SCOPE = "presift"


def tracer() -> trace.Tracer:
    """The tracer of all presift spans (a no-op outside `exported`)."""
    return trace.get_tracer(SCOPE)


@contextmanager
def span(name: str, **counts: int) -> Iterator[trace.Span]:
    """A span around a block, with `counts` as attributes `presift.*`. An exception is told by its type alone: its text
    may quote the prompt."""
    attributes = {f"presift.{key}": value for key, value in counts.items()}
    with tracer().start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


@dataclass(frozen=True, slots=True)
class OtlpEndpoint:
    """Where telemetry goes: `address` (HOST:PORT or a URL), by TLS or plain; `authority` is PEM."""

    address: str
    tls: bool = False
    authority: bytes | None = None

    def arguments(self) -> dict[str, Any]:
        """Of OpenTelemetry's exporters."""
        if not self.tls:
            return {"endpoint": self.address, "insecure": True}
        return {
            "endpoint": self.address,
            "insecure": False,
            "credentials": grpc.ssl_channel_credentials(self.authority),
        }


def _is_no_detaching(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to detach context")


@contextmanager
def exported(service: str, otlp: OtlpEndpoint | None) -> Iterator[None]:
    """While the block runs, traces and metrics of `service` go to `otlp`; at its end what is left is sent."""
    # A stream that its caller left may be closed in another context than it began in; OpenTelemetry logs a stack trace
    # for each, which any caller could fill the log with. Nothing is lost: that context has ended.
    logging.getLogger("opentelemetry.context").addFilter(_is_no_detaching)
    if otlp is None:
        yield
        return
    resource = Resource.create({"service.name": f"presift-{service}"})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**otlp.arguments())))
    meters = MeterProvider(
        resource=resource, metric_readers=[PeriodicExportingMetricReader(OTLPMetricExporter(**otlp.arguments()))]
    )
    trace.set_tracer_provider(traces)
    metrics.set_meter_provider(meters)
    try:
        yield
    finally:
        traces.shutdown()
        meters.shutdown()
