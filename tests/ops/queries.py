"""The queries of rules and dashboards, compared with the metrics of services/presift/telemetry/metrics.yaml."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .promql import asked
from .sources import DECLARED, OPS

FOLDER = OPS / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
PAGES = {path.stem: json.loads(path.read_text()) for path in sorted((OPS / "grafana/dashboards").glob("*.json"))}
# `make promtool` installs Debian's beside Python.
PROMTOOL = shutil.which("promtool", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="RULES NOT TESTED: no promtool (run `make promtool`)")


def promtool(*arguments, folder=FOLDER):
    """Its exit status and output."""
    done = subprocess.run([PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, done.stdout + done.stderr


def panels(page):
    return [panel for panel in page["panels"] if panel["type"] != "row"]


def queries():
    """Expression -> where it is, of all rules and dashboards."""
    found = {rule["expr"]: rule.get("record") or rule["alert"] for rule in RULES}
    for page in PAGES.values():
        found |= {target["expr"]: panel["title"] for panel in panels(page) for target in panel["targets"]}
    return found


def series():
    """Every series that exists -> the labels that it may have."""
    scraped = {"job", "instance"}
    found = {"up": scraped, "ALERTS": {"alertname", "alertstate", "severity", *scraped}}
    found |= {name: scraped for name in DECLARED["process"]}
    for metric in DECLARED["metrics"]:
        parts = ("_bucket", "_sum", "_count") if metric["kind"] == "histogram" else ("",)
        labels = {attribute.replace(".", "_") for attribute in metric["attributes"]} | scraped
        found |= {metric["prometheus"] + part: labels | ({"le"} if part == "_bucket" else set()) for part in parts}
    return found | {rule["record"]: asked(rule["expr"]).grouped | scraped for rule in RULES if "record" in rule}


def faults(expr):
    """Series and labels in `expr` that do not exist."""
    known, want, labels = series(), asked(expr), set()
    for name, matched in want.selectors:
        labels |= known.get(name, set())
        yield from () if name in known else [f"no metric {name}"]
        yield from (f"{name} has no label {label}" for label in matched - known.get(name, matched))
    yield from (f"no metric has the label {label}" for label in want.grouped - want.made - labels)
