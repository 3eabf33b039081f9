"""Serves /metrics for Prometheus over plain HTTP: as text, or as OpenMetrics with exemplars.

OpenTelemetry's exporter makes the metric families, and prometheus_client serves them. The exporter (0.66b2) still drops
exemplars, so this module adds them: a histogram bucket links to the trace of a request that fell into it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, Metric, MetricReader, MetricsData
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from presift.core.errors import PresiftError

log = logging.getLogger(__name__)

# A bucket: the name of its samples, and their labels.
_Key = tuple[str, frozenset[tuple[str, str]]]


class ExemplarReader(PrometheusMetricReader):
    """The exporter, which also keeps the exemplars of its last translation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.exemplars: dict[_Key, Exemplar] = {}
        super().__init__(scope_info_enabled=False, registry=registry)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object) -> None:
        if metrics_data is not None:
            self.exemplars = dict(_exemplars_of(metrics_data))
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


class _WithExemplars(Collector):
    """The families of `inner`, with the exemplars of `reader` on their buckets."""

    def __init__(self, inner: CollectorRegistry, reader: ExemplarReader) -> None:
        self._inner = inner
        self._reader = reader

    def describe(self) -> Iterable[Family]:
        """Empty, because registering would collect otherwise."""
        return ()

    def collect(self) -> Iterator[Family]:
        for family in self._inner.collect():
            if family.type == "histogram":
                family.samples = [self._exemplary(family, sample) for sample in family.samples]
            yield family

    def _exemplary(self, family: Family, sample: Sample) -> Sample:
        found = self._reader.exemplars.get((family.name, _labels(sample.labels.items())))
        return sample if found is None else sample._replace(exemplar=found)


@contextmanager
def prometheus_endpoint(listen: str) -> Iterator[MetricReader]:
    """Serve the reader's metrics at HOST:PORT until the block ends, in threads of its own.

    Raises PresiftError if the address cannot be bound.
    """
    inner, outer = CollectorRegistry(), CollectorRegistry()
    reader = ExemplarReader(inner)
    outer.register(_WithExemplars(inner, reader))
    ProcessCollector(registry=outer)
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), outer)
    except (OSError, OverflowError) as error:
        raise PresiftError(f"cannot listen on {listen} (metrics_listen): {error}") from None
    log.info("metrics at http://%s:%d/metrics", host, server.server_port)
    try:
        yield reader
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _exemplars_of(data: MetricsData) -> Iterator[tuple[_Key, Exemplar]]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if isinstance(metric.data, Histogram):
                    yield from _exemplars_in(metric, metric.data.data_points)


def _exemplars_in(metric: Metric, points: Iterable[HistogramDataPoint]) -> Iterator[tuple[_Key, Exemplar]]:
    name = family_name(metric)
    for point in points:
        labels = {key.replace(".", "_"): str(value) for key, value in (point.attributes or {}).items()}
        for each in point.exemplars:
            if each.trace_id is None or each.span_id is None:
                continue
            bounds = [*map(str, point.explicit_bounds), "+Inf"]
            bucket = bounds[bisect_left(point.explicit_bounds, each.value)]
            trace = {"trace_id": format_trace_id(each.trace_id), "span_id": format_span_id(each.span_id)}
            exemplar = Exemplar(trace, float(each.value), each.time_unix_nano / 1e9)
            yield (name, _labels({**labels, "le": bucket}.items())), exemplar


def family_name(metric: Metric) -> str:
    """The exporter's name of a metric: it appends only the units seconds and bytes."""
    name = metric.name.replace(".", "_")
    suffix = {"s": "_seconds", "By": "_bytes"}.get(metric.unit or "", "")
    return name if name.endswith(suffix) else f"{name}{suffix}"


def _labels(items: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """The labels that are not empty: the exporter adds empty ones for missing attributes."""
    return frozenset((key, value) for key, value in items if value)
