"""The rules of ops/prometheus: Prometheus' own tool takes them, each alert fires and is silent, and says what to do."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .observed import OPS, RULES, Question, faults, known, questions, rules

FOLDER = RULES.parent
ALERTS = [rule for rule in rules() if "alert" in rule]
# `make promtool` puts Debian's beside Python.
PROMTOOL = shutil.which("promtool", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="RULES NOT TESTED: no promtool (Debian's package prometheus; `make promtool`)"
)


def promtool(*arguments, folder=FOLDER):
    return subprocess.run([PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules():
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_alert_fires_on_its_trouble_and_on_no_other():
    done = promtool("test", "rules", "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operator_gets_the_same_rules():
    """Changed on either side alone, they differ."""
    written = OPS / "k8s" / "components" / "alerts" / "prometheusrule.yaml"
    made = runpy.run_path(str(FOLDER / "for_operator.py"))
    assert written == made["WRITTEN"]
    assert written.read_text() == made["prometheus_rule"](RULES.read_text()), "run `make alerts`"
    assert yaml.safe_load(written.read_text())["spec"] == yaml.safe_load(RULES.read_text())


# A rule, what it is broken to, and what of rules_test.yml must say so.
PLANTED = (
    ("presift:request_errors:ratio_rate5m > 0.05", "presift:request_errors:ratio_rate5m > 0.5", "PresiftErrors"),
    ("presift_serving == 0", "presift_serving == 2", "PresiftInstanceNotServing"),
    ("presift:draft_queue:ratio > 0.8", "presift:draft_queue:ratio > 0.99", "PresiftDraftQueueFull"),
    (
        "presift:request_deadlines:ratio_rate5m > 0.05",
        "presift:request_deadlines:ratio_rate5m > 0.5",
        "PresiftDeadlines",
    ),
    ('presift_route="spec_kv"} > 1.5', 'presift_route="spec_kv"} > 1', "PresiftNoGain"),
    ("max_over_time(presift:serving:min10m[1h])", "max_over_time(presift:serving:sum[1h])", "PresiftReplicaMissing"),
    ('presift_target_refused_total{presift_reason="OVERLOADED"}', "presift_target_refused_total", "PROMPT_TOO_LONG"),
    (
        'presift_cache_operations_total{presift_outcome=~"corrupt',
        'presift_cache_operations_total{presift_outcome=~"hit|corrupt',
        "cache_trouble:ratio_rate5m",
    ),
)


@needs_promtool
def test_rules_that_were_broken_are_found(tmp_path):
    text = RULES.read_text()
    for rule, broken, _ in PLANTED:
        assert rule in text
        text = text.replace(rule, broken)
    (tmp_path / "rules.yml").write_text(text)
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", "rules_test.yml", folder=tmp_path)
    assert done.returncode != 0
    assert [name for _, _, name in PLANTED if name not in done.stdout + done.stderr] == []


def test_no_alert_is_left_out_of_the_tests():
    fired = set()
    for test in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]:
        for expected in test.get("promql_expr_test", []):
            fired |= set(re.findall(r'alertname="(\w+)"', str(expected["exp_samples"])))
        fired |= {expected["alertname"] for expected in test.get("alert_rule_test", []) if expected["exp_alerts"]}
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule):
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["for"]
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert told["runbook_url"] == f"ops/README.md#{rule['alert'].lower()}"


def test_names_of_rules_are_unique():
    names = [rule.get("record") or rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_the_jobs_are_those_that_rules_and_dashboards_ask_for():
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    jobs = {job["job_name"] for job in scraped} - {"presift-files"}
    asked_for = {job for question in questions() for job in re.findall(r'\bjob="(presift-\w+)"', question.expr)}
    assert jobs == asked_for == {"presift-orchestrator", "presift-draft", "presift-target"}


def test_error_types_are_those_of_the_wire():
    wire = (OPS.parent / "protos" / "presift" / "v1" / "errors.proto").read_text()
    for question in questions():
        for types in re.findall(r'error_type=~"([^"]+)"', question.expr):
            assert all(f"ERROR_REASON_{name} =" in wire for name in types.split("|")), question


def test_rules_and_dashboards_ask_only_for_what_is_declared():
    series = known()
    assert [fault for question in questions() for fault in faults(question, series)] == []


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("sum(rate(presift_request_total[5m]))", "nothing tells presift_request_total"),
        ('presift_serving{presift_route="full"} == 0', "presift_serving has no label presift_route"),
        ("sum by (tenant) (presift_serving)", "no metric there has the label tenant"),
        ("rate(presift_coverage[5m])", "nothing tells presift_coverage"),
        ("presift:coverage:mean_rate5m < 0.7", "nothing tells presift:coverage:mean_rate5m"),
    ],
)
def test_what_is_not_declared_is_found(expr, fault):
    assert faults(Question("here", expr), known()) == [f"here: {fault}"]


@pytest.mark.parametrize(("fetched", "version", "ends"), [(0, 0, 0), (100, 0, 2), (0, 1, 2)])
def test_a_promtool_that_could_not_be_had_is_told(tmp_path, fetched, version, ends):
    """By the status of `make promtool`, on which .ci/run goes on to say that the rules are not tested."""
    tools, venv = tmp_path / "tools", tmp_path / "venv"
    unpack = f"mkdir -p usr/bin && printf '#!/bin/sh\\necho promtool; exit {version}' > usr/bin/promtool"
    for name, script in {"apt-get": f"touch prometheus_1.deb; exit {fetched}", "dpkg": unpack}.items():
        tools.mkdir(exist_ok=True)
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    (venv / "bin").mkdir(parents=True)
    asked = ["make", "-o", f"{venv}/.installed", "promtool", f"VENV={venv}"]
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        asked, cwd=OPS.parent, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ends, done.stdout + done.stderr
