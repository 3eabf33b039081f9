"""OpenTelemetry: one trace per request across all services, and the export of traces and metrics.

Without an OTLP endpoint or a metrics address every call here is a no-op of the OpenTelemetry API. Spans are named after
the stages: tokenize, protect, route, cache.get, score, prefill, lookahead, select, decode, ... Attributes are counts,
names and times: never prompt text, token ids or secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
from opentelemetry import metrics, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from presift.core.plan import SpanRef
from presift.telemetry.logs import LogFormat
from presift.telemetry.prometheus import prometheus_endpoint
from presift.telemetry.propagation import TraceParentPropagator

SCOPE = "presift"


def tracer() -> trace.Tracer:
    """The tracer of all presift spans (a no-op outside `exported`)."""
    return trace.get_tracer(SCOPE)


@contextmanager
def span(name: str, **counts: int) -> Iterator[trace.Span]:
    """A span around a block, with `counts` as attributes `presift.*`. Of an exception it records only the type: the
    text may quote the prompt."""
    attributes = {f"presift.{key}": value for key, value in counts.items()}
    with tracer().start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


def current_span_ref() -> SpanRef | None:
    """The current span; None if it is not exported."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    return SpanRef(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id))


def link(span: trace.Span, to: SpanRef | None) -> None:
    """Link `span` to the span that made what it uses, possibly in another trace."""
    if to is not None:
        sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        span.add_link(trace.SpanContext(int(to.trace_id, 16), int(to.span_id, 16), is_remote=True, trace_flags=sampled))


@dataclass(frozen=True, slots=True)
class OtlpEndpoint:
    """Where telemetry is sent: `address` is HOST:PORT or a URL, `authority` is PEM."""

    address: str
    tls: bool = False
    authority: bytes | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of OpenTelemetry's exporters."""
        if not self.tls:
            return {"endpoint": self.address, "insecure": True}
        return {
            "endpoint": self.address,
            "insecure": False,
            "credentials": grpc.ssl_channel_credentials(self.authority),
        }


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a service exports: traces and metrics to `otlp`, metrics at `metrics_listen` (HOST:PORT) for Prometheus, log
    lines in `log_format`."""

    otlp: OtlpEndpoint | None = None
    metrics_listen: str | None = None
    log_format: LogFormat = LogFormat.TEXT

    @property
    def has_traces(self) -> bool:
        """Whether requests have a trace. JSON log lines need its ids even if no trace is exported."""
        return self.otlp is not None or self.log_format is LogFormat.JSON


def _is_no_detaching(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to detach context")


@contextmanager
def exported(service: str, telemetry: Telemetry) -> Iterator[None]:
    """Export traces and metrics of `service` while the block runs; at its end send what is left.

    Raises PresiftError if `metrics_listen` cannot be bound.
    """
    # A cancelled stream may be closed in another context than the one it began in. OpenTelemetry logs a stack trace for
    # each, so callers could fill the log. Nothing is lost: that context has ended.
    logging.getLogger("opentelemetry.context").addFilter(_is_no_detaching)
    propagate.set_global_textmap(TraceParentPropagator())
    resource = Resource.create({"service.name": f"presift-{service}", "service.version": version("presift")})
    with ExitStack() as exporters:
        readers: list[MetricReader] = []
        if telemetry.metrics_listen is not None:
            readers.append(exporters.enter_context(prometheus_endpoint(telemetry.metrics_listen)))
        if telemetry.otlp is not None:
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(**telemetry.otlp.arguments())))
        if readers:
            meters = MeterProvider(resource=resource, metric_readers=readers)
            exporters.callback(meters.shutdown)
            metrics.set_meter_provider(meters)
        if telemetry.has_traces:
            traces = _traces(resource, telemetry.otlp)
            exporters.callback(traces.shutdown)
            trace.set_tracer_provider(traces)
        yield


def _traces(resource: Resource, otlp: OtlpEndpoint | None) -> TracerProvider:
    traces = TracerProvider(resource=resource)
    if otlp is not None:
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**otlp.arguments())))
    return traces
