"""Records metrics: `count` and `record` accept only the names of metrics.yaml, as gauges.py does.

Attributes have short names here: `route` is `presift.route`; see `attribute`. Thread-safe.
"""

from __future__ import annotations

from functools import cache

from opentelemetry import metrics
from opentelemetry.metrics import Counter, Histogram

from presift.telemetry.catalog import Metric, catalog
from presift.telemetry.tracing import SCOPE

Attributes = dict[str, str]

# Attributes of OpenTelemetry's conventions.
_CONVENTIONS = {
    "genai_operation": "gen_ai.operation.name",
    "model": "gen_ai.request.model",
    "token_type": "gen_ai.token.type",
    "error": "error.type",
    "http_route": "http.route",
    "status": "http.response.status_code",
}


def attribute(word: str) -> str:
    """The full name of an attribute."""
    return _CONVENTIONS.get(word, f"presift.{word}")


def count(name: str, amount: int = 1, /, **attributes: str) -> None:
    """Add to a declared counter. Raises KeyError for a name or attribute that is not declared."""
    _counter(name).add(amount, checked(name, attributes))


def record(name: str, value: float, /, **attributes: str) -> None:
    """Add a value to a declared histogram. Raises KeyError for a name or attribute that is not declared."""
    _histogram(name).record(value, checked(name, attributes))


def checked(name: str, attributes: Attributes) -> Attributes:
    """The attributes with full names. Raises KeyError for a metric or attribute that is not declared."""
    found = {attribute(word): value for word, value in attributes.items()}
    unknown = set(found) - set(catalog()[name].attributes)
    if unknown:
        raise KeyError(f"{name} has no attribute {', '.join(sorted(unknown))}")
    return found


def declared(name: str, kind: str) -> Metric:
    """The metric of that name. Raises KeyError if there is none of that kind."""
    metric = catalog()[name]
    if metric.kind != kind:
        raise KeyError(f"{name} is a {metric.kind}")
    return metric


@cache
def _counter(name: str) -> Counter:
    metric = declared(name, "counter")
    return metrics.get_meter(SCOPE).create_counter(metric.name, metric.unit, metric.description)


@cache
def _histogram(name: str) -> Histogram:
    metric = declared(name, "histogram")
    return metrics.get_meter(SCOPE).create_histogram(
        metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=[*map(float, metric.buckets)]
    )
