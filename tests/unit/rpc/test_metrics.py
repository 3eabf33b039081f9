"""The declared list: nothing beside it exists, and nothing in it is idle."""

import ast
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from presift.rpc import metrics
from presift.rpc.metrics import DECLARED, count, record

SERVICES = Path(__file__).parents[3] / "services" / "presift"
KINDS = {"count": "counter", "record": "histogram"}


@pytest.fixture
def read(monkeypatch):
    """name -> its points, told to a provider of this test's own."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics.metrics, "get_meter", provider.get_meter)
    for cached in (metrics._counter, metrics._histogram):
        cached.cache_clear()

    def points(name):
        told = {
            metric.name: metric
            for resource in reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        return told[name]

    yield points
    for cached in (metrics._counter, metrics._histogram):
        cached.cache_clear()


def test_names_are_unique_and_whole():
    names = [metric.name for metric in DECLARED]
    assert len(names) == len(set(names))
    for metric in DECLARED:
        assert metric.name.startswith("presift.") and metric.kind in ("counter", "histogram")
        assert metric.unit and metric.description


def test_counters_add_up(read):
    count("presift.requests", route="full", reason="requested")
    count("presift.requests", 2, route="full", reason="requested")
    told = read("presift.requests")
    (point,) = told.data.data_points
    assert (point.value, dict(point.attributes)) == (3, {"route": "full", "reason": "requested"})
    assert told.unit == "{request}"


def test_histograms_record(read):
    record("presift.coverage", 0.25, route="spec_pc")
    (point,) = read("presift.coverage").data.data_points
    assert (point.count, point.sum) == (1, 0.25)


@pytest.mark.parametrize(
    ("call", "name", "attributes"),
    [
        (count, "presift.unheard", {}),
        (record, "presift.unheard", {}),
        (count, "presift.requests", {"prompt": "secret"}),
        (record, "presift.coverage", {"user": "secret"}),
        (count, "presift.coverage", {}),
        (record, "presift.requests", {}),
    ],
)
def test_what_is_not_declared_is_refused(call, name, attributes):
    with pytest.raises(KeyError):
        call(name, 1, **attributes)


def calls():
    """(kind, name, attributes) of every metric that a service tells."""
    for path in SERVICES.rglob("*.py"):
        if path.name == "metrics.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in KINDS and isinstance(node.args[0].value, str):
                    yield KINDS[called], node.args[0].value, frozenset(word.arg for word in node.keywords)


def test_what_the_services_tell_is_declared():
    declared = {(metric.kind, metric.name): frozenset(metric.attributes) for metric in DECLARED}
    for kind, name, attributes in calls():
        assert (kind, name) in declared, name
        assert attributes == declared[kind, name], name


def test_what_is_declared_is_told():
    assert {metric.name for metric in DECLARED} == {name for _, name, _ in calls()}
