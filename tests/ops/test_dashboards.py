"""The dashboards of ops/grafana: every query works, every declared metric is shown. `make check` regenerates them."""

import re

import pytest
import yaml

from .promql import asked
from .queries import PAGES, RULES, needs_promtool, panels, promtool, queries
from .sources import DECLARED, OPS, config

GRAFANA = OPS / "grafana"


def faults(page):
    """Panels without a text or a unit, with a legend of labels that the query drops, or of another time than shown."""
    row = ""
    for panel in page["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        for target in panel.get("targets", []):
            want = asked(target["expr"])
            kept = want.grouped | want.made | {"job", "instance", "presift_route"}
            if not set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept:
                yield f"{panel['title']}: legend {target['legendFormat']}"
            # Exemplars lead to traces; recorded series have none.
            if target.get("exemplar", False) != (panel["type"] == "timeseries" and "_bucket" in target["expr"]):
                yield f"{panel['title']}: exemplars"
            if (
                row == "In the time shown"
                and not panel["title"].endswith(" now")
                and "[$__range]" not in target["expr"]
            ):
                yield f"{panel['title']}: is not of the time shown"
        if panel["type"] != "row" and not (panel["description"] and panel["fieldConfig"]["defaults"]["unit"]):
            yield f"{panel['title']}: has no description or unit"


@pytest.mark.parametrize("name", PAGES)
def test_panels_are_right(name):
    assert PAGES[name]["uid"] == f"presift-{name}" and list(faults(PAGES[name])) == []
    (variable,) = PAGES[name]["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")


@pytest.mark.parametrize(
    ("field", "value"),
    [("legendFormat", "{{tenant}}"), ("exemplar", True), ("expr", "sum(rate(presift_coverage_count[5m]))")],
)
def test_a_wrong_panel_is_found(field, value):
    target = {"expr": "sum(rate(presift_coverage_count[$__range]))", "legendFormat": "all"} | {field: value}
    panel = {"type": "stat", "title": "a", "description": "b.", "fieldConfig": {"defaults": {"unit": "s"}}}
    page = {"panels": [{"type": "row", "title": "In the time shown"}, panel | {"targets": [target]}]}
    assert len(list(faults(page))) == 1


def test_every_declared_metric_and_every_recorded_series_is_used():
    names = {name for expr in queries() for name, _ in asked(expr).selectors}
    names |= {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert {metric["prometheus"] for metric in DECLARED["metrics"]} - names == set()
    assert {rule["record"] for rule in RULES if "record" in rule} - names == set()


@needs_promtool
def test_every_query_is_promql(tmp_path):
    exprs = [expr.replace("$__rate_interval", "1m").replace("$__range", "1h") for expr in queries()]

    def checked(exprs):
        rules = [{"record": f"asked:{number}", "expr": expr} for number, expr in enumerate(exprs)]
        (tmp_path / "asked.yml").write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
        return promtool("check", "rules", "asked.yml", folder=tmp_path)

    status, output = checked(exprs)
    assert status == 0, output
    assert checked([*exprs, "sum(rate(presift_serving))"])[0] != 0


@needs_promtool
def test_a_role_without_instances_shows_as_none(tmp_path):
    (serving,) = (panel for panel in panels(PAGES["serving"]) if panel["title"] == "Serving")
    up = [{"series": f'presift_serving{{job="presift-target", instance="{name}"}}', "values": "1x5"} for name in "xy"]
    shown = {"orchestrator": 0, "draft": 0, "target": 2}
    samples = [{"labels": f'{{role="{role}"}}', "value": value} for role, value in shown.items()]
    asking = [{"expr": serving["targets"][0]["expr"], "eval_time": "4m", "exp_samples": samples}]
    tests = [{"interval": "1m", "input_series": up, "promql_expr_test": asking}]
    (tmp_path / "serving.yml").write_text(yaml.safe_dump({"tests": tests}))
    status, output = promtool("test", "rules", "serving.yml", folder=tmp_path)
    assert status == 0, output


def provisioned(name):
    return yaml.safe_load((GRAFANA / "provisioning" / name / "presift.yaml").read_text())


def test_provisioning_names_the_sources_that_dashboards_use():
    sources = {source["uid"]: source for source in provisioned("datasources")["datasources"]}
    prometheus, (provider,) = sources["prometheus"], provisioned("dashboards")["providers"]
    assert prometheus["isDefault"] and {source["editable"] for source in sources.values()} == {False}
    scrape = yaml.safe_load((OPS / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert prometheus["jsonData"]["timeInterval"] == scrape
    assert {each["datasourceUid"] for each in prometheus["jsonData"]["exemplarTraceIdDestinations"]} <= sources.keys()
    assert provider["allowUiUpdates"] is False
    services = config(files=("compose.yaml", "ops/compose.observability.yaml"))["services"]
    assert provider["options"]["path"] in {each["target"] for each in services["grafana"]["volumes"]}
    for source in sources.values():
        assert re.fullmatch(r"http://(\w+):\d+", source["url"])[1] in services


def test_visitors_of_composes_grafana_can_open_traces_and_change_nothing():
    """Explore needs the role Editor; everything with which an editor could reach other machines is off."""
    grafana = config(files=("compose.yaml", "ops/compose.observability.yaml"))["services"]["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Editor"
    off = ("UNIFIED_ALERTING_ENABLED", "PUBLIC_DASHBOARDS_ENABLED", "SNAPSHOTS_ENABLED", "AUTH_BASIC_ENABLED")
    assert {grafana[f"GF_{name}"] for name in off} == {"false"}
