"""Writes the rules of rules.yml as the Prometheus operator takes them: kustomize cannot put a file below `spec`."""

from pathlib import Path
from textwrap import indent

FOLDER = Path(__file__).parent
WRITTEN = FOLDER.parent / "k8s" / "components" / "alerts" / "prometheusrule.yaml"
_HEAD = """\
# Made by `make alerts` from ops/prometheus/rules.yml. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: presift
spec:
"""


def prometheus_rule(rules: str) -> str:
    """The text of a PrometheusRule with these rules, comments and all."""
    return _HEAD + indent(rules, "  ")


if __name__ == "__main__":
    WRITTEN.write_text(prometheus_rule((FOLDER / "rules.yml").read_text()))
