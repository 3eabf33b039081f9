"""What operators' files ask Prometheus for, held against what is declared in ops/telemetry/metrics.yaml."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from .promql import asked

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
RULES = OPS / "prometheus" / "rules.yml"
DASHBOARDS = sorted((OPS / "grafana" / "dashboards").glob("*.json"))
_SCRAPED = {"job", "instance"}
# Prometheus' own.
_BUILT_IN = {"up": _SCRAPED, "ALERTS": {"alertname", "alertstate", "severity", *_SCRAPED}}
_HISTOGRAM = ("_bucket", "_sum", "_count")


@dataclass(frozen=True, slots=True)
class Question:
    """One query, and where it stands."""

    where: str
    expr: str


def rules():
    """Of all groups, in order."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels(dashboard):
    """All but rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def questions():
    """Of all rules and dashboards."""
    for rule in rules():
        yield Question(f"rules.yml: {rule.get('record') or rule['alert']}", rule["expr"])
    for path in DASHBOARDS:
        for panel in panels(json.loads(path.read_text())):
            for target in panel["targets"]:
                yield Question(f"{path.name}: {panel['title']}", target["expr"])


def known():
    """series -> the labels that it may have."""
    schema = yaml.safe_load((OPS / "telemetry" / "metrics.yaml").read_text())
    found = dict(_BUILT_IN) | {name: _SCRAPED for name in schema["process"]}
    for metric in schema["metrics"]:
        labels = {attribute.replace(".", "_") for attribute in metric["attributes"]} | _SCRAPED
        if metric["kind"] != "histogram":
            found[metric["prometheus"]] = labels
            continue
        for part in _HISTOGRAM:
            found[metric["prometheus"] + part] = labels | ({"le"} if part == "_bucket" else set())
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = set(asked(rule["expr"]).grouped) | _SCRAPED
    return found


def faults(question, series):
    """What `question` asks for that nothing tells: in words, none if all is well."""
    want = asked(question.expr)
    told = []
    labels = set()
    for name, matched in want.selectors:
        if name not in series:
            told.append(f"{question.where}: nothing tells {name}")
            continue
        labels |= series[name]
        told += [f"{question.where}: {name} has no label {label}" for label in sorted(matched - series[name])]
    told += [
        f"{question.where}: no metric there has the label {label}"
        for label in sorted(want.grouped - want.made - labels)
    ]
    return told
