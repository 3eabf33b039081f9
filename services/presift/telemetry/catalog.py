"""The catalog of all metrics, read from `metrics.yaml`; no other metric can be recorded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `kind` is "counter", "histogram" or "gauge"; units are UCUM; `attributes` are the allowed keys;
    `buckets` are the upper bounds of a histogram's buckets."""

    name: str
    kind: str
    unit: str
    description: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...]


@cache
def catalog() -> dict[str, Metric]:
    """The metrics by name. The first call reads the file: a service makes its gauges before it serves."""
    text = resources.files("presift.telemetry").joinpath("metrics.yaml").read_text(encoding="utf-8")
    return {
        entry["name"]: Metric(
            entry["name"],
            entry["kind"],
            entry["unit"],
            entry["description"],
            tuple(entry["attributes"]),
            tuple(entry.get("buckets", ())),
        )
        for entry in yaml.safe_load(text)["metrics"]
    }
