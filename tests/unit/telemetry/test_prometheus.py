"""The door for Prometheus: names as the schema says them, exemplars that lead to traces, refusals at the start."""

import asyncio
import logging
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from presift.core.errors import PresiftError
from presift.telemetry import gauges, metrics
from presift.telemetry.catalog import catalog
from presift.telemetry.prometheus import prometheus_endpoint

SCHEMA = yaml.safe_load((Path(__file__).parents[3] / "services/presift/telemetry/metrics.yaml").read_text())
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


@pytest.fixture
def listen() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def told(listen, monkeypatch) -> Iterator[str]:
    """Where a provider of this test's own is exposed, which `count` and `record` tell."""
    cached = (metrics._counter, metrics._histogram, gauges._instrument)
    with prometheus_endpoint(listen) as reader:
        provider = MeterProvider(metric_readers=[reader])
        monkeypatch.setattr(metrics.metrics, "get_meter", provider.get_meter)
        for each in cached:
            each.cache_clear()
        yield listen
        provider.shutdown()
    for each in cached:
        each.cache_clear()


def scraped(listen: str, accept: str = "") -> str:
    request = urllib.request.Request(f"http://{listen}/metrics", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read().decode()


def words(metric) -> dict[str, str]:
    """Every attribute of it, by its short word."""
    conventions = ("genai_operation", "model", "token_type", "error", "http_route", "status")
    shorts = {metrics.attribute(word): word for word in conventions}
    return {shorts.get(key, key.removeprefix("presift.")): "x" for key in metric.attributes}


async def test_names_and_labels_are_those_of_the_schema(told):
    """What dashboards and alerts ask for is what is there."""
    read = []
    for metric in catalog().values():
        if metric.kind == "counter":
            metrics.count(metric.name, **words(metric))
        elif metric.kind == "histogram":
            metrics.record(metric.name, 0.5, **words(metric))
        else:
            read.append(gauges.gauge(metric.name, lambda: 1.0, **words(metric)))
    with gauges.observed(*read):
        text = await asyncio.to_thread(scraped, told)
    found: dict[str, set[str]] = {}
    for family in plain(text):
        for sample in family.samples:
            name = sample.name
            if family.type == "histogram":
                name = family.name
            found.setdefault(name, set()).update(sample.labels)
    for entry in SCHEMA["metrics"]:
        labels = {key.replace(".", "_") for key in entry["attributes"]}
        assert found[entry["prometheus"]] - {"le"} == labels, entry["name"]
    ours = {name for name in found if name.startswith(("presift_", "gen_ai_"))}
    assert ours == {entry["prometheus"] for entry in SCHEMA["metrics"]}
    others = set(found) - ours - {"target_info"}
    assert others == set(SCHEMA["process"])


def test_buckets_lead_to_the_trace_of_a_request(told):
    with TracerProvider().get_tracer("test").start_as_current_span("call") as span:
        metrics.record("presift.coverage", 0.42, route="spec_pc", of="mask")
        context = span.get_span_context()
    metrics.record("presift.coverage", 0.97, route="spec_pc", of="mask")  # outside of any trace
    (family,) = (each for each in openmetrics(scraped(told, OPENMETRICS)) if each.name == "presift_coverage")
    exemplars = {sample.labels["le"]: sample.exemplar for sample in family.samples if sample.exemplar}
    assert set(exemplars) == {"0.5"} and exemplars["0.5"].value == 0.42
    ids = {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
    assert exemplars["0.5"].labels == ids


def test_an_exemplar_stays_in_the_series_that_it_was_told_for(told):
    """Two series, one of which lacks an attribute; and a value above all bounds."""
    tracer = TracerProvider().get_tracer("test")
    one = {"genai_operation": "chat", "model": "m", "route": "full"}
    with tracer.start_as_current_span("good"):
        metrics.record("gen_ai.server.request.duration", 0.015, **one)
    with tracer.start_as_current_span("bad"):
        metrics.record("gen_ai.server.request.duration", 1e6, **one, error="INTERNAL")
    (family,) = (
        e for e in openmetrics(scraped(told, OPENMETRICS)) if e.name == "gen_ai_server_request_duration_seconds"
    )
    found = {(s.labels["error_type"], s.labels["le"]) for s in family.samples if s.exemplar}
    assert found == {("", "0.02"), ("INTERNAL", "+Inf")}


def test_the_plain_text_has_no_exemplars(told):
    with TracerProvider().get_tracer("test").start_as_current_span("call"):
        metrics.record("presift.coverage", 0.42, route="spec_pc", of="mask")
    assert "trace_id" not in scraped(told) and "presift_coverage_bucket" in scraped(told)


@pytest.mark.parametrize("address", ["127.0.0.1:{taken}", "203.0.113.1:1", "127.0.0.1:70000", "nowhere.invalid:1"])
def test_an_address_that_cannot_be_bound_is_an_error(address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = address.format(taken=taken.getsockname()[1])
        with pytest.raises(PresiftError, match="metrics_listen"), prometheus_endpoint(listen):
            pass


def test_any_free_port_is_told_in_the_log(caplog):
    """Beyond loopback too: metrics hold no secrets, and containers are reached from outside."""
    caplog.set_level(logging.INFO)
    with prometheus_endpoint("0.0.0.0:0"):
        (message,) = (record.getMessage() for record in caplog.records)
        url = message.removeprefix("metrics at ").replace("0.0.0.0", "127.0.0.1")
        with urllib.request.urlopen(url, timeout=30) as reply:
            assert b"process_resident_memory_bytes" in reply.read()


def test_the_port_is_free_again(listen):
    for _ in range(2):
        with prometheus_endpoint(listen):
            assert "process_resident_memory_bytes" in scraped(listen)
