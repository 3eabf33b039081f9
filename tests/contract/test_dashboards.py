"""The dashboards of ops/grafana: whole, of declared metrics alone, and nothing that is declared is left out."""

import json
import re
from collections import Counter

import pytest
import yaml

from .observed import DASHBOARDS, OPS, panels, questions, rules
from .promql import asked
from .test_prometheus_rules import needs_promtool, promtool

PAGES = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}
each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
GRID = 24
# Of two targets, and nobody else.
SERVING = {"orchestrator": 0, "draft": 0, "target": 2}
# What Grafana puts in when it asks.
_MACROS = {"$__rate_interval": "1m", "$__range": "1h"}


def test_there_is_one_for_each_question_of_an_operator():
    assert sorted(PAGES) == ["quality", "savings", "serving", "where-time-goes"]
    assert {page["uid"] for page in PAGES.values()} == {f"presift-{name}" for name in PAGES}


@each_page
def test_every_panel_says_what_it_shows_in_which_unit(page):
    for panel in panels(page):
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"] and panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["type"] in {"timeseries", "stat", "bargauge"}, "ops/grafana/shoot draws no other kind"
    assert max(Counter(panel["title"] for panel in panels(page)).values()) == 1 or page["uid"] == "presift-quality"


@each_page
def test_panels_fill_their_rows_and_do_not_overlap(page):
    taken = Counter()
    for panel in page["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= GRID
        taken.update((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
    assert max(taken.values()) == 1
    rows = Counter(y for _, y in taken)
    assert {row: cells for row, cells in rows.items() if cells != GRID} == {}


@each_page
def test_legends_name_labels_that_the_query_keeps(page):
    for panel in panels(page):
        for target in panel["targets"]:
            want = asked(target["expr"])
            kept = want.grouped | want.made | {"job", "instance", "presift_route"}
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= kept, panel["title"]


@each_page
def test_latencies_lead_to_traces(page):
    for panel in panels(page):
        for target in panel["targets"]:
            wanted = panel["type"] == "timeseries" and "_bucket" in target["expr"]
            assert target.get("exemplar", False) is wanted, panel["title"]
            # A recorded series of a histogram has none.
            assert panel["type"] != "timeseries" or "_seconds:p" not in target["expr"], panel["title"]


def test_whoever_compose_lets_in_may_open_a_trace():
    grafana = yaml.safe_load((OPS / "compose.observability.yaml").read_text())["services"]["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Editor", "Viewers have no Explore"
    off = ("UNIFIED_ALERTING_ENABLED", "PUBLIC_DASHBOARDS_ENABLED", "SNAPSHOTS_ENABLED", "AUTH_BASIC_ENABLED")
    assert {grafana[f"GF_{name}"] for name in off} == {"false"}
    (provider,) = yaml.safe_load((OPS / "grafana/provisioning/dashboards/presift.yaml").read_text())["providers"]
    assert provider["allowUiUpdates"] is False
    sources = yaml.safe_load((OPS / "grafana/provisioning/datasources/presift.yaml").read_text())["datasources"]
    assert {source["editable"] for source in sources} == {False}


@each_page
def test_what_stands_under_the_time_shown_is_of_it(page):
    row = None
    for panel in page["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        if row == "In the time shown" and not panel["title"].endswith(" now"):
            assert all("[$__range]" in target["expr"] for target in panel["targets"]), panel["title"]
            assert not any("rate5m" in target["expr"] for target in panel["targets"]), panel["title"]


@needs_promtool
def test_a_role_without_instances_shows_as_none(tmp_path):
    (serving,) = (panel for panel in panels(PAGES["serving"]) if panel["title"] == "Serving")
    up = [{"series": f'presift_serving{{job="presift-target", instance="{name}"}}', "values": "1x5"} for name in "xy"]
    shown = [{"labels": f'{{role="{role}"}}', "value": value} for role, value in SERVING.items()]
    asking = [{"expr": serving["targets"][0]["expr"], "eval_time": "4m", "exp_samples": shown}]
    tests = [{"interval": "1m", "input_series": up, "promql_expr_test": asking}]
    (tmp_path / "serving.yml").write_text(yaml.safe_dump({"tests": tests}))
    done = promtool("test", "rules", "serving.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_query_is_promql(tmp_path):
    exprs = {question.expr for question in questions()}
    for macro, value in _MACROS.items():
        exprs = {expr.replace(macro, value) for expr in exprs}
    asking = [{"record": f"asked:{number}", "expr": expr} for number, expr in enumerate(sorted(exprs))]
    (tmp_path / "asked.yml").write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asking}]}))
    done = promtool("check", "rules", "asked.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_declared_metric_is_shown_or_asked_for():
    names = {name for question in questions() for name, _ in asked(question.expr).selectors}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} | names
    declared = {
        metric["prometheus"] for metric in yaml.safe_load((OPS / "telemetry/metrics.yaml").read_text())["metrics"]
    }
    assert declared - shown == set()


def test_every_recorded_series_is_used():
    names = {name for question in questions() for name, _ in asked(question.expr).selectors}
    assert {rule["record"] for rule in rules() if "record" in rule} - names == set()


def test_provisioning_names_the_source_that_dashboards_choose():
    folder = OPS / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "presift.yaml").read_text())["datasources"]
    (prometheus,) = (source for source in sources if source["type"] == "prometheus")
    assert prometheus["isDefault"] and prometheus["uid"] == "prometheus"
    scrape = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert prometheus["jsonData"]["timeInterval"] == scrape
    linked = {where["datasourceUid"] for where in prometheus["jsonData"]["exemplarTraceIdDestinations"]}
    assert linked <= {source["uid"] for source in sources}
    (provider,) = yaml.safe_load((folder / "dashboards" / "presift.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards/presift"
    for page in PAGES.values():
        (variable,) = page["templating"]["list"]
        assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
