"""The rules of ops/prometheus: promtool accepts them, each alert fires and stays silent, metrics and labels exist."""

import os
import re
import runpy
import shutil
import subprocess

import pytest
import yaml

from .queries import FOLDER, RULES, faults, needs_promtool, promtool, queries
from .sources import METRICS_PORT, OPS, ROLES, ROOT

ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules_pass_their_tests():
    for command in (("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")):
        status, output = promtool(*command)
        assert status == 0, output


# What a rule says, a wrong text, and what the report of rules_test.yml must then name.
PLANTED = (
    ("presift:request_errors:ratio_rate5m > 0.05", "presift:request_errors:ratio_rate5m > 0.5", "PresiftErrors"),
    ("presift_serving == 0", "presift_serving == 2", "PresiftInstanceNotServing"),
    ("presift:draft_queue:ratio > 0.8", "presift:draft_queue:ratio > 0.99", "PresiftDraftQueueFull"),
    ("request_deadlines:ratio_rate5m > 0.05", "request_deadlines:ratio_rate5m > 0.5", "PresiftDeadlines"),
    ('presift_route="spec_kv"} > 1.5', 'presift_route="spec_kv"} > 1', "PresiftNoGain"),
    ("max_over_time(presift:serving:min10m[1h])", "max_over_time(presift:serving:sum[1h])", "PresiftReplicaMissing"),
    ('presift_target_refused_total{presift_reason="OVERLOADED"}', "presift_target_refused_total", "PROMPT_TOO_LONG"),
    ('{presift_outcome=~"corrupt', '{presift_outcome=~"hit|corrupt', "cache_trouble:ratio_rate5m"),
)


@needs_promtool
def test_broken_rules_fail_their_tests(tmp_path):
    text = (FOLDER / "rules.yml").read_text()
    for rule, broken, _ in PLANTED:
        assert rule in text
        text = text.replace(rule, broken)
    (tmp_path / "rules.yml").write_text(text)
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    status, output = promtool("test", "rules", "rules_test.yml", folder=tmp_path)
    assert status != 0 and [name for _, _, name in PLANTED if name not in output] == []


def test_every_alert_fires_in_a_test():
    fired = set()
    for test in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]:
        fired |= set(re.findall(r"alertname=\"(\w+)\"", str(test.get("promql_expr_test"))))
        fired |= {each["alertname"] for each in test.get("alert_rule_test", []) if each["exp_alerts"]}
    assert fired == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_severity_a_duration_and_a_text(name):
    """tests/unit/test_docs.py checks that the runbook exists."""
    assert ALERTS[name]["labels"]["severity"] in {"page", "ticket"} and ALERTS[name]["for"]
    assert set(ALERTS[name]["annotations"]) == {"summary", "description", "runbook_url"}


def test_the_operator_gets_the_same_rules():
    made = runpy.run_path(str(FOLDER / "for_operator.py"))
    text = (OPS / "k8s/components/alerts/prometheusrule.yaml").read_text()
    assert text == made["prometheus_rule"]((FOLDER / "rules.yml").read_text()), "run `make alerts`"
    assert yaml.safe_load(text)["spec"] == yaml.safe_load((FOLDER / "rules.yml").read_text())


def test_names_of_rules_are_unique():
    names = [rule.get("record") or rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)


def jobs(prometheus):
    """Job -> names and ports that it scrapes, of those that it finds by DNS."""
    return {
        each["job_name"]: [(found["names"], found["port"]) for found in each["dns_sd_configs"]]
        for each in prometheus["scrape_configs"]
        if "dns_sd_configs" in each
    }


def test_prometheus_scrapes_the_jobs_that_rules_and_dashboards_name():
    scraped = jobs(yaml.safe_load((FOLDER / "prometheus.yml").read_text()))
    assert scraped == {f"presift-{role}": [([role], METRICS_PORT)] for role in ROLES}
    assert {job for expr in queries() for job in re.findall(r'\bjob="(presift-\w+)"', expr)} == set(scraped)


def test_error_types_are_those_of_the_protocol():
    reasons = (ROOT / "protos/presift/v1/errors.proto").read_text()
    named = {
        name for expr in queries() for names in re.findall(r'error_type=~?"([^"]+)"', expr) for name in names.split("|")
    }
    assert named and all(f"ERROR_REASON_{name} =" in reasons for name in named)


def test_rules_and_dashboards_use_declared_metrics_alone():
    assert {where: found for expr, where in queries().items() if (found := list(faults(expr)))} == {}


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("sum(rate(presift_request_total[5m]))", "no metric presift_request_total"),
        ('presift_serving{presift_route="full"} == 0', "presift_serving has no label presift_route"),
        ("sum by (tenant) (presift_serving)", "no metric has the label tenant"),
        ("rate(presift_coverage[5m])", "no metric presift_coverage"),
        ("presift:coverage:mean_rate5m < 0.7", "no metric presift:coverage:mean_rate5m"),
    ],
)
def test_a_metric_that_does_not_exist_is_found(expr, fault):
    assert list(faults(expr)) == [fault]


@pytest.mark.parametrize(("fetched", "version", "ends"), [(0, 0, 0), (100, 0, 2), (0, 1, 2)])
def test_make_promtool_fails_if_it_cannot_install_promtool(tmp_path, fetched, version, ends):
    """.ci/run then prints that the rules are not tested."""
    unpack = f"mkdir -p usr/bin && printf '#!/bin/sh\\necho promtool; exit {version}' > usr/bin/promtool"
    for name, text in {"apt-get": f"touch prometheus_1.deb; exit {fetched}", "dpkg": unpack}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "venv/bin").mkdir(parents=True)
    command = ["make", "-o", f"{tmp_path}/venv/.installed", "promtool", f"VENV={tmp_path}/venv"]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    assert subprocess.run(command, cwd=ROOT, env=environment, timeout=60, check=False).returncode == ends
