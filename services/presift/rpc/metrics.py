"""The declared list of metrics. A metric that is not here does not exist; `record` and `count` refuse other names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from opentelemetry import metrics
from opentelemetry.metrics import Counter, Histogram

from presift.rpc.telemetry import SCOPE

Attributes = dict[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared metric: `kind` is "counter" or "histogram"; units are UCUM; `attributes` are the allowed keys."""

    name: str
    kind: str
    unit: str
    description: str
    attributes: tuple[str, ...] = ()


DECLARED: tuple[Metric, ...] = (
    Metric("presift.requests", "counter", "{request}", "Decisions made", ("route", "reason")),
    Metric("presift.fallbacks", "counter", "{request}", "Requests answered in full because of trouble", ("reason",)),
    Metric("presift.cache.operations", "counter", "{operation}", "Cache operations", ("operation", "outcome")),
    Metric("presift.prompt.tokens", "counter", "{token}", "Prompt tokens received", ("route",)),
    Metric("presift.kept.tokens", "counter", "{token}", "Prompt tokens that the target read", ("route",)),
    Metric("presift.kv.tokens", "counter", "{token}", "KV tokens that prompts held while decoding", ("route",)),
    Metric("presift.entries.reused", "counter", "{request}", "Compressed entries found in the radix cache", ("route",)),
    Metric("presift.prefill.failures", "counter", "{request}", "Prompts not read while the draft worked"),
    Metric("presift.coverage", "histogram", "1", "Coverage: of the draft's mask, of the target's KV", ("route", "of")),
    Metric("presift.ttft", "histogram", "ms", "Time to first token at the orchestrator", ("route", "cache")),
    Metric(
        "presift.guard.samples",
        "counter",
        "{request}",
        "Requests taken to be answered by full too: compared, failed, interrupted by callers or dropped",
        ("route", "band", "outcome"),
    ),
    Metric("presift.guard.overlap", "histogram", "1", "Overlap of an answer with full's", ("route", "band")),
    Metric("presift.guard.exact", "counter", "{request}", "Answers that were full's own", ("route", "band")),
    Metric("presift.guard.first_divergence", "histogram", "{token}", "Where others left full's", ("route", "band")),
    Metric("presift.guard.switched", "counter", "{switch}", "Routes switched off and on", ("route", "band", "to")),
    Metric("presift.replica.picked", "counter", "{request}", "Replicas chosen, and by what", ("role", "by")),
    Metric("presift.replica.failovers", "counter", "{request}", "Calls that went on to another replica", ("role",)),
    Metric("presift.replica.breaker", "counter", "{move}", "Moves of circuit breakers", ("role", "to")),
    Metric("presift.replica.hedges", "counter", "{request}", "Second calls beside a slow one", ("role", "outcome")),
    Metric("presift.draft.duration", "histogram", "ms", "Stages of scoring", ("stage",)),
    Metric("presift.draft.refused", "counter", "{request}", "Score requests refused", ("reason",)),
    Metric("presift.target.ttft", "histogram", "ms", "Time to first token inside the target"),
    Metric("presift.target.selection", "histogram", "ms", "Selecting KV inside the target", ("stage",)),
    Metric("presift.target.tokens", "counter", "{token}", "Tokens of the target", ("kind",)),
    Metric("presift.target.aborted", "counter", "{request}", "Requests aborted inside the engine"),
)
_BY_NAME = {metric.name: metric for metric in DECLARED}


def count(name: str, amount: int = 1, /, **attributes: str | int | bool) -> None:
    """Add to a declared counter. Raises KeyError for a name or attribute that is not declared."""
    _counter(name).add(amount, _checked(name, attributes))


def record(name: str, value: float, /, **attributes: str | int | bool) -> None:
    """Add a value to a declared histogram. Raises KeyError for a name or attribute that is not declared."""
    _histogram(name).record(value, _checked(name, attributes))


def _checked(name: str, attributes: Attributes) -> Attributes:
    unknown = set(attributes) - set(_BY_NAME[name].attributes)
    if unknown:
        raise KeyError(f"{name} has no attribute {', '.join(sorted(unknown))}")
    return attributes


@cache
def _counter(name: str) -> Counter:
    metric = _declared(name, "counter")
    return metrics.get_meter(SCOPE).create_counter(metric.name, metric.unit, metric.description)


@cache
def _histogram(name: str) -> Histogram:
    metric = _declared(name, "histogram")
    return metrics.get_meter(SCOPE).create_histogram(metric.name, metric.unit, metric.description)


def _declared(name: str, kind: str) -> Metric:
    metric = _BY_NAME[name]
    if metric.kind != kind:
        raise KeyError(f"{name} is a {metric.kind}")
    return metric
