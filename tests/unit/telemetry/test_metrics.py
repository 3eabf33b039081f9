"""The declared list: nothing beside it exists, and nothing in it is idle."""

import ast
import asyncio
import re
import threading
from pathlib import Path

import pytest
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from presift.telemetry import gauges as gauges_module
from presift.telemetry import metrics
from presift.telemetry.catalog import catalog
from presift.telemetry.gauges import gauge, gauges, observed
from presift.telemetry.metrics import attribute, count, record
from presift.telemetry.prometheus import family_name

ROOT = Path(__file__).parents[3]
SERVICES = ROOT / "services" / "presift"
SCHEMA = yaml.safe_load((SERVICES / "telemetry" / "metrics.yaml").read_text())
KINDS = {"count": "counter", "record": "histogram", "gauge": "gauge", "gauges": "gauge"}
ROLES = {"orchestrator", "draft", "target"}
CACHED = (metrics._counter, metrics._histogram, gauges_module._instrument)


@pytest.fixture
def read(monkeypatch):
    """name -> what was told of it, to a provider of this test's own."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics.metrics, "get_meter", provider.get_meter)
    for cached in CACHED:
        cached.cache_clear()

    def points(name):
        data = reader.get_metrics_data()
        told = {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        return told.get(name)

    yield points
    for cached in CACHED:
        cached.cache_clear()


def values(told):
    return {tuple(sorted(point.attributes.items())): point.value for point in told.data.data_points}


def test_names_are_unique_and_whole():
    names = [entry["name"] for entry in SCHEMA["metrics"]]
    assert len(names) == len(set(names))
    for metric in catalog().values():
        assert re.fullmatch(r"(presift|gen_ai)(\.[a-z_]+)+", metric.name)
        assert metric.kind in KINDS.values() and metric.unit and metric.description
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_times_are_in_seconds():
    for metric in catalog().values():
        assert metric.unit in ("s", "1", "By") or re.fullmatch(r"\{[a-z]+\}", metric.unit)


def test_no_attribute_can_name_a_tenant_or_a_caller():
    """Their number is unlimited, and they would identify callers."""
    keys = {key for metric in catalog().values() for key in metric.attributes}
    assert not {key for key in keys if re.search(r"tenant|caller|user|peer|prompt|key$", key)}


def test_counters_add_up(read):
    count("presift.requests", route="full", reason="requested")
    count("presift.requests", 2, route="full", reason="requested")
    told = read("presift.requests")
    assert values(told) == {(("presift.reason", "requested"), ("presift.route", "full")): 3}
    assert told.unit == "{request}"


def test_histograms_record_in_their_own_buckets(read):
    record("presift.coverage", 0.25, route="spec_pc", of="mask")
    (point,) = read("presift.coverage").data.data_points
    assert (point.count, point.sum) == (1, 0.25)
    declared = catalog()["presift.coverage"]
    assert point.explicit_bounds == declared.buckets


async def test_gauges_are_read_while_they_are_observed(read):
    level = [1]
    held = [
        gauge("presift.leases.held", lambda: level[0], of="draft"),
        gauge("presift.admission.running", lambda: None),
    ]
    many = gauges("presift.replicas", lambda: [(2, {"role": "draft", "state": "usable"}), (0, {"role": "target"})])
    with observed(*held, many):
        assert values(read("presift.leases.held")) == {(("presift.of", "draft"),): 1}
        assert sorted(values(read("presift.replicas")).values()) == [0, 2]
        assert read("presift.admission.running") is None
        level[0] = 5
        await asyncio.sleep(2 * gauges_module._SAME_FOR_S)
        assert values(read("presift.leases.held")) == {(("presift.of", "draft"),): 5}
    assert read("presift.leases.held") is None


async def test_whoever_collects_the_event_loop_reads(read):
    """What is read belongs to the loop: a scrape's thread must not look at it while it changes."""
    threads = []
    with observed(gauge("presift.draft.queue", lambda: threads.append(threading.get_ident()) or 7)):
        told = await asyncio.to_thread(read, "presift.draft.queue")
    assert values(told) == {(): 7} and threads == [threading.get_ident()]


async def test_a_gauge_that_cannot_be_read_takes_no_other_along(read, caplog):
    with observed(gauge("presift.draft.queue", lambda: 7), gauge("presift.draft.running", lambda: 1 / 0)):
        assert values(read("presift.draft.queue")) == {(): 7} and read("presift.draft.running") is None
    assert "cannot read presift.draft.running" in caplog.text


async def test_an_event_loop_that_hangs_leaves_only_its_gauges_out(read, monkeypatch):
    monkeypatch.setattr(gauges_module, "_LOOP_S", 0.05)
    count("presift.fallbacks", reason="draft_timeout", route="full")
    with observed(gauge("presift.draft.queue", lambda: 7)):
        found = []
        thread = threading.Thread(target=lambda: found.extend([read("presift.draft.queue"), read("presift.fallbacks")]))
        thread.start()
        thread.join(30)  # the loop stands still meanwhile
    assert found[0] is None and values(found[1]) == {
        (("presift.reason", "draft_timeout"), ("presift.route", "full")): 1
    }


@pytest.mark.parametrize(
    ("call", "name", "attributes"),
    [
        (count, "presift.unheard", {}),
        (record, "presift.unheard", {}),
        (count, "presift.requests", {"prompt": "secret"}),
        (record, "presift.coverage", {"user": "secret"}),
        (count, "presift.coverage", {}),
        (record, "presift.requests", {}),
        (gauge, "presift.unheard", {}),
        (gauge, "presift.requests", {}),
        (gauge, "presift.draft.queue", {"prompt": "secret"}),
        (gauges, "presift.coverage", {}),
    ],
)
def test_what_is_not_declared_is_refused(call, name, attributes):
    with pytest.raises(KeyError):
        call(name, (lambda: 1) if call in (gauge, gauges) else 1, **attributes)


def calls():
    """(kind, name, attributes, service) of every metric that a service tells; "" is any."""
    for path in sorted(SERVICES.rglob("*.py")):
        if path.parent.name == "telemetry" and path.name in ("metrics.py", "gauges.py", "catalog.py"):
            continue
        parts = path.relative_to(SERVICES).parts
        service = "orchestrator" if parts[:2] == ("rpc", "pool") else parts[0]  # the only one that has replicas
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in KINDS and isinstance(node.args[0].value, str):
                    words = {attribute(word.arg) for word in node.keywords if word.arg is not None}
                    yield KINDS[called], node.args[0].value, words, service if service in ROLES else ""


def test_what_the_services_tell_is_declared():
    declared = {(metric.kind, metric.name): set(metric.attributes) for metric in catalog().values()}
    for kind, name, words, _ in calls():
        assert (kind, name) in declared, name
        assert words <= declared[kind, name], name


def test_every_declared_metric_is_used():
    assert {metric.name for metric in catalog().values()} == {name for _, name, _, _ in calls()}


def test_no_other_part_makes_instruments():
    """All goes through `count`, `record` and `observed`, which check the names."""
    for path in SERVICES.rglob("*.py"):
        if path.parent.name != "telemetry" or path.name not in ("metrics.py", "gauges.py"):
            assert not re.search(r"create_(counter|histogram|up_down|observable|gauge)", path.read_text()), path


def test_the_list_gives_the_names_at_the_prometheus_endpoint():
    named = {
        metric.name: family_name(metric) + ("_total" if metric.kind == "counter" else "")
        for metric in catalog().values()
    }
    assert {entry["name"]: entry["prometheus"] for entry in SCHEMA["metrics"]} == named


def test_the_schema_says_which_services_tell_it():
    told = {}
    for _, name, _, service in calls():
        told.setdefault(name, set()).update({service} if service else ROLES)
    assert {entry["name"]: set(entry["services"]) for entry in SCHEMA["metrics"]} == told


def test_the_schema_explains_every_attribute_and_no_other():
    assert set(SCHEMA["attributes"]) == {key for metric in catalog().values() for key in metric.attributes}
    assert all(SCHEMA["attributes"].values())
