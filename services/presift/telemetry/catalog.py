"""The catalog of all metrics; no other metric can be recorded. `ops/telemetry/metrics.yaml` documents them.

Names and buckets follow OpenTelemetry's GenAI conventions where they define one. All times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

# OpenTelemetry's buckets, and larger ones: a long prompt on a plain CPU takes minutes.
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_REQUEST_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84)
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_USED_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
# presift's own: a cache answers within a millisecond, a draft on a CPU within a minute.
_STAGE_S = (0.0002, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_SHARE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1)
_RATIO = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10)
_DIVERGENCE_TOKENS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_GEN_AI = ("gen_ai.operation.name", "gen_ai.request.model")
_ROUTE = "presift.route"
_ROUTE_AND_BAND = (_ROUTE, "presift.band")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `kind` is "counter", "histogram" or "gauge"; units are UCUM; `attributes` are the allowed keys;
    `buckets` are the upper bounds of a histogram's buckets."""

    name: str
    kind: str
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, unit: str, description: str, *attributes: str) -> Metric:
    return Metric(name, "counter", unit, description, attributes)


def _gauge(name: str, unit: str, description: str, *attributes: str) -> Metric:
    return Metric(name, "gauge", unit, description, attributes)


def _histogram(name: str, unit: str, description: str, buckets: tuple[float, ...], *attributes: str) -> Metric:
    return Metric(name, "histogram", unit, description, attributes, buckets)


_OF_EVERY_SERVICE = (
    _gauge("presift.serving", "1", "1 while the health status is SERVING, else 0"),
    _gauge("presift.calls.running", "{call}", "Running calls, without health checks"),
    _counter(
        "presift.callers.refused",
        "{call}",
        "Calls refused because of missing, invalid or insufficient credentials",
        "presift.why",
    ),
)

_OF_ANSWERS = (
    _histogram(
        *(
            "gen_ai.server.request.duration",
            "s",
            "From a request's arrival to its end, failed requests included",
            _REQUEST_S,
        ),
        *(*_GEN_AI, _ROUTE, "error.type"),
    ),
    _histogram(
        *("gen_ai.server.time_to_first_token", "s", "From a request's arrival to its first token", _TTFT_S),
        *(*_GEN_AI, _ROUTE, "presift.cache"),
    ),
    _histogram(
        *("gen_ai.server.time_per_output_token", "s", "Mean time of the tokens after the first one", _PER_TOKEN_S),
        *(*_GEN_AI, _ROUTE),
    ),
    _histogram(
        *("gen_ai.client.token.usage", "{token}", "Tokens of prompts and answers", _USED_TOKENS),
        *(*_GEN_AI, _ROUTE, "gen_ai.token.type"),
    ),
)

_OF_DECISIONS = (
    _counter("presift.requests", "{request}", "Decisions, by route and reason", _ROUTE, "presift.reason"),
    _counter("presift.fallbacks", "{request}", "Requests served by route full because of a failure", "presift.reason"),
    _counter(
        "presift.prompt.tokens",
        "{token}",
        "Prompt tokens that the target reads, and those dropped before it",
        _ROUTE,
        "presift.fate",
    ),
    _counter(
        "presift.kv.tokens",
        "{token}",
        "Prompt tokens whose KV is held, and those whose KV is dropped",
        _ROUTE,
        "presift.fate",
    ),
    _histogram(
        *("presift.coverage", "1", "Coverage of the draft's mask, and of the target's KV", _SHARE),
        *(_ROUTE, "presift.of"),
    ),
    _histogram("presift.forecast.ratio", "1", "Measured over predicted time to first token", _RATIO, _ROUTE),
    _histogram(
        "presift.forecast.against_full",
        "1",
        "Measured time to first token over the prediction for route full",
        _RATIO,
        _ROUTE,
    ),
    _histogram(
        "presift.orchestrator.stage.duration", "s", "Stages of a request in the orchestrator", _STAGE_S, "presift.stage"
    ),
    _counter("presift.entries.reused", "{request}", "Compressed entries found in the radix cache", _ROUTE),
    _counter("presift.prefill.failures", "{request}", "Failed prefills of prompts during scoring"),
)

_OF_THE_CACHE = (
    _counter("presift.cache.operations", "{operation}", "Cache operations", "presift.operation", "presift.outcome"),
    _gauge(
        "presift.leases.held", "{lease}", "Leases held: for prompts being scored, and for tenants' calls", "presift.of"
    ),
)

_OF_ADMISSION = (
    _histogram("presift.admission.wait", "s", "Time that requests waited in the admission queue", _STAGE_S),
    _counter("presift.admission.refused", "{request}", "Requests refused because the queue is full", "presift.field"),
    _gauge("presift.admission.running", "{request}", "Running requests"),
    _gauge("presift.admission.waiting", "{request}", "Requests in the admission queue"),
    _gauge("presift.admission.waiting.bytes", "By", "Memory of the requests in the admission queue"),
    _gauge("presift.admission.waiting.tenants", "{tenant}", "Tenants with requests in the admission queue"),
    _counter("presift.limits.refused", "{call}", "Calls refused because of their tenant's quota", "presift.limit"),
    _counter(
        "presift.http.replies",
        "{call}",
        "HTTP responses, without health checks",
        "http.route",
        "http.response.status_code",
    ),
    _counter("presift.limits.trouble", "{call}", "Calls whose tenant's usage was unavailable", "presift.limit"),
)

_OF_THE_GUARD = (
    _counter(
        *("presift.guard.samples", "{request}", "Requests sampled for shadow evaluation, by outcome"),
        *(*_ROUTE_AND_BAND, "presift.outcome"),
    ),
    _histogram(
        "presift.guard.overlap", "1", "Overlap of an answer with the answer of route full", _SHARE, *_ROUTE_AND_BAND
    ),
    _counter("presift.guard.exact", "{request}", "Answers equal to those of route full", *_ROUTE_AND_BAND),
    _histogram(
        *(
            "presift.guard.first_divergence",
            "{token}",
            "First token that differs from the answer of route full",
            _DIVERGENCE_TOKENS,
        ),
        *_ROUTE_AND_BAND,
    ),
    _counter(
        "presift.guard.switched",
        "{switch}",
        "Times that a route was switched off or on",
        *_ROUTE_AND_BAND,
        "presift.to",
    ),
    _gauge("presift.guard.off", "1", "1 while a route is switched off, else 0", *_ROUTE_AND_BAND),
)

_OF_REPLICAS = (
    _gauge(
        "presift.replicas",
        "{replica}",
        "Usable and unusable replicas",
        "presift.role",
        "presift.state",
    ),
    _counter("presift.replica.picked", "{request}", "Replicas chosen, by rule", "presift.role", "presift.by"),
    _counter(
        "presift.replica.failovers",
        "{request}",
        "Calls that were sent to another replica after a failure",
        "presift.role",
    ),
    _counter("presift.replica.breaker", "{move}", "State changes of circuit breakers", "presift.role", "presift.to"),
    _counter(
        "presift.replica.hedges",
        "{request}",
        "Hedged calls: second calls for slow ones",
        "presift.role",
        "presift.outcome",
    ),
)

_OF_THE_DRAFT = (
    _histogram("presift.draft.stage.duration", "s", "Stages of scoring", _STAGE_S, "presift.stage"),
    _counter("presift.draft.refused", "{request}", "Score requests refused", "presift.reason"),
    _counter("presift.draft.tokens", "{token}", "Tokens read and generated by the draft", "presift.kind"),
    _gauge("presift.draft.running", "{request}", "Prompts being scored"),
    _gauge("presift.draft.queue", "{request}", "Prompts waiting for the draft"),
    _gauge("presift.draft.queue.limit", "{request}", "The most prompts that may wait"),
)

_OF_THE_TARGET = (
    _histogram("presift.target.stage.duration", "s", "Stages of an answer", _STAGE_S, "presift.stage"),
    _counter(
        "presift.target.tokens", "{token}", "Tokens prefilled, found in the prefix cache, or generated", "presift.kind"
    ),
    _counter("presift.target.refused", "{request}", "Requests refused", "presift.reason"),
    _counter(
        "presift.target.aborted",
        "{request}",
        "Unfinished answers: disconnected clients, stopped shadow requests, deadlines, errors",
    ),
    _gauge("presift.target.running", "{request}", "Requests that the engine is generating"),
    _gauge("presift.target.waiting", "{request}", "Requests waiting inside the engine"),
    _gauge("presift.target.kv.held", "{token}", "KV slots of running requests"),
    _gauge(
        "presift.target.kv.free",
        "{token}",
        "KV slots for further requests, including evictable slots of the prefix cache",
    ),
)

CATALOG: tuple[Metric, ...] = (
    *_OF_EVERY_SERVICE,
    *_OF_ANSWERS,
    *_OF_DECISIONS,
    *_OF_THE_CACHE,
    *_OF_ADMISSION,
    *_OF_THE_GUARD,
    *_OF_REPLICAS,
    *_OF_THE_DRAFT,
    *_OF_THE_TARGET,
)
