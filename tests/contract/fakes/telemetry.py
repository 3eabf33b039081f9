"""What the services told OpenTelemetry, kept in memory. The providers are global and can be set once per process."""

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from presift.telemetry.metrics import attribute


class Telemetry:
    def __init__(self):
        self._reader, self._exporter = InMemoryMetricReader(), InMemorySpanExporter()
        traces = TracerProvider()
        traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(traces)
        metrics.set_meter_provider(MeterProvider(metric_readers=[self._reader]))

    def forget_spans(self):
        self._exporter.clear()

    @property
    def spans(self):
        return self._exporter.get_finished_spans()

    def total(self, name, **attributes):
        """The sum of a counter, or the number of a histogram's values, over the points with these attributes, by their
        short words."""
        total = 0
        attributes = {attribute(word): value for word, value in attributes.items()}
        for point in self._points(name):
            if attributes.items() <= dict(point.attributes).items():
                total += getattr(point, "value", None) or getattr(point, "count", 0)
        return total

    def _points(self, name):
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        yield from metric.data.data_points
