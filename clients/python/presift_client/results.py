"""What a call gives back, as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2
from presift_client.forecasts import StageSpeed, speed_of
from presift_client.names import name_of


@dataclass(frozen=True, slots=True)
class Model:
    """A model behind the orchestrator. Two of one `tokenizer_fingerprint` read the same token ids."""

    id: str
    revision: str
    context_tokens: int
    tokenizer_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was applied and why. Counts in tokens; `coverage` 0..1, None where the draft dropped nothing; times in ms.

    `kept_tokens` is what the target reads, `kv_tokens` what it is to hold. Where KV is dropped: `kv_capacity` (what
    came of it where it adapts), `kv_selection` and `keep_full_prefix`, else None; `continued` if an earlier turn's
    selection was used. `predicted_ttft_ms` from arrival at the orchestrator, None where nothing was predicted.
    `cross_vocabulary`: the draft reads other token ids than the target.
    """

    route: str
    reason: str
    detail: str
    prompt_tokens: int
    kept_tokens: int
    kv_tokens: int
    protected_tokens: int
    coverage: float | None
    cache: str
    draft: Model | None
    target: Model
    tokenize_ms: float
    cache_ms: float
    draft_ms: float
    prefill_ms: float = 0.0
    kv_capacity: int | None = None
    kv_selection: str | None = None
    keep_full_prefix: bool | None = None
    continued: bool = False
    predicted_ttft_ms: float | None = None
    cross_vocabulary: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in the answer; `text` may be empty while a character is incomplete."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """The end of an answer. `ttft_ms` covers everything from the request's arrival at the orchestrator.

    `kv_tokens` is what the prompt really held. Where KV was dropped: whether the compressed entry was found, the time
    that choosing and copying took, and the share of the choosing queries' attention on what was kept.
    """

    prompt_tokens: int
    kept_tokens: int
    kv_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str
    target_ttft_ms: float
    ttft_ms: float
    total_ms: float
    reused_entry: bool = False
    score_ms: float = 0.0
    publish_ms: float = 0.0
    coverage: float | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer with its decision and usage."""

    text: str
    token_ids: tuple[int, ...]
    decision: Decision
    usage: Usage


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """Which policy file is in force: SHA-256 of its bytes in hexadecimal, and when it was read (RFC 3339)."""

    digest: str
    loaded_at: str


@dataclass(frozen=True, slots=True)
class RouteQuality:
    """How a route's answers agree with those of `full`, for prompts of `min_tokens` to `max_tokens`; None: no samples.

    `mean_overlap` and `exact_share` 0..1; `mean_first_divergence` in tokens, of the answers that were not the same;
    `since` when it was switched off or on last, in UTC.
    """

    route: str
    min_tokens: int
    max_tokens: int
    samples: int
    mean_overlap: float | None
    exact_share: float | None
    mean_first_divergence: float | None
    switched_off: bool
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Replica:
    """A process of the draft or the target (`role`). `breaker`: closed, open or half_open; `unused` says in words why
    it is not asked although it is healthy, empty where it is."""

    address: str
    role: str
    healthy: bool
    breaker: str
    in_flight: int
    unused: str
    name: str


@dataclass(frozen=True, slots=True)
class Info:
    """What stands behind an orchestrator; `draft` is None while there is none, `policy_file` where there is none.
    `speeds`: what was learnt of the stages, the last observed last."""

    draft: Model | None
    target: Model
    supported_routes: tuple[str, ...]
    compress_above_tokens: int
    policy_file: PolicyFile | None = None
    route_quality: tuple[RouteQuality, ...] = ()
    speeds: tuple[StageSpeed, ...] = ()
    replicas: tuple[Replica, ...] = ()


Event = Decision | Delta | Usage


def event_of(response: orchestrator_pb2.GenerateResponse) -> Event:
    """One message of the stream."""
    if response.HasField("decision"):
        return decision_of(response.decision)
    if response.HasField("usage"):
        return _usage(response.usage)
    return Delta(response.delta.text, tuple(response.delta.token_ids))


def gather(events: Iterable[Event]) -> Generation:
    """The whole answer from its events. Raises ValueError if the decision or the usage is missing."""
    texts: list[str] = []
    token_ids: list[int] = []
    decision: Decision | None = None
    usage: Usage | None = None
    for event in events:
        if isinstance(event, Delta):
            texts.append(event.text)
            token_ids.extend(event.token_ids)
        elif isinstance(event, Decision):
            decision = event
        else:
            usage = event
    if decision is None or usage is None:
        raise ValueError("the stream ended without decision or usage")
    return Generation("".join(texts), tuple(token_ids), decision, usage)


def decision_of(decision: orchestrator_pb2.Decision) -> Decision:
    """Names instead of numbers: `spec_pc`, `over_budget`, `hit`."""
    kv = _spec_kv(decision.policy)
    return Decision(
        route=name_of(plan_pb2.Route, decision.route, "ROUTE"),
        reason=name_of(orchestrator_pb2.DecisionReason, decision.reason, "DECISION_REASON"),
        detail=decision.detail,
        prompt_tokens=decision.prompt_tokens,
        kept_tokens=decision.kept_tokens,
        kv_tokens=decision.kv_tokens,
        protected_tokens=decision.protected_tokens,
        coverage=decision.coverage if decision.HasField("coverage") else None,
        cache=name_of(orchestrator_pb2.CacheOutcome, decision.cache, "CACHE_OUTCOME"),
        draft=_model(decision.draft) if decision.HasField("draft") else None,
        target=_model(decision.target),
        tokenize_ms=decision.tokenize_ms,
        cache_ms=decision.cache_ms,
        draft_ms=decision.draft_ms,
        prefill_ms=decision.prefill_ms,
        kv_capacity=None if kv is None else _capacity(kv, decision.kv_tokens),
        kv_selection=None if kv is None else name_of(plan_pb2.KvSelection, kv.selection, "KV_SELECTION"),
        keep_full_prefix=decision.keep_full_prefix if decision.HasField("keep_full_prefix") else None,
        continued=decision.continued,
        predicted_ttft_ms=decision.predicted_ttft_ms if decision.HasField("predicted_ttft_ms") else None,
        cross_vocabulary=decision.cross_vocabulary,
    )


def info_of(info: orchestrator_pb2.GetInfoResponse) -> Info:
    """What GetInfo said."""
    return Info(
        draft=_model(info.draft) if info.HasField("draft") else None,
        target=_model(info.target),
        supported_routes=tuple(name_of(plan_pb2.Route, route, "ROUTE") for route in info.supported_routes),
        compress_above_tokens=info.compress_above_tokens,
        policy_file=_policy_file(info.policy_file) if info.HasField("policy_file") else None,
        route_quality=tuple(_quality(each) for each in info.route_quality),
        speeds=tuple(speed_of(speed) for speed in info.speeds),
        replicas=tuple(_replica(each) for each in info.replicas),
    )


def _replica(replica: orchestrator_pb2.Replica) -> Replica:
    return Replica(
        replica.address,
        replica.role,
        replica.healthy,
        replica.breaker,
        replica.in_flight,
        replica.unused,
        replica.name,
    )


def _quality(quality: orchestrator_pb2.RouteQuality) -> RouteQuality:
    return RouteQuality(
        route=name_of(plan_pb2.Route, quality.route, "ROUTE"),
        min_tokens=quality.min_tokens,
        max_tokens=quality.max_tokens,
        samples=quality.samples,
        mean_overlap=quality.mean_overlap if quality.HasField("mean_overlap") else None,
        exact_share=quality.exact_share if quality.HasField("exact_share") else None,
        mean_first_divergence=quality.mean_first_divergence if quality.HasField("mean_first_divergence") else None,
        switched_off=quality.switched_off,
        since=quality.since.ToDatetime(UTC) if quality.HasField("since") else None,
    )


def _policy_file(file: orchestrator_pb2.PolicyFile) -> PolicyFile:
    return PolicyFile(file.digest, file.loaded_at.ToJsonString())


def _usage(usage: orchestrator_pb2.Usage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        kept_tokens=usage.kept_tokens,
        kv_tokens=usage.kv_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        finish_reason=name_of(target_pb2.FinishReason, usage.finish_reason, "FINISH_REASON"),
        target_ttft_ms=usage.target_ttft_ms,
        ttft_ms=usage.ttft_ms,
        total_ms=usage.total_ms,
        reused_entry=usage.reused_entry,
        score_ms=usage.score_ms,
        publish_ms=usage.publish_ms,
        coverage=usage.coverage if usage.HasField("coverage") else None,
    )


def _spec_kv(policy: plan_pb2.Policy) -> plan_pb2.SpecKv | None:
    """The policy that dropped KV, where one did."""
    name = policy.WhichOneof("policy")
    message = None if name is None else getattr(policy, name)
    return message if isinstance(message, plan_pb2.SpecKv) else getattr(message, "kv", None)


def _capacity(kv: plan_pb2.SpecKv, kv_tokens: int) -> int:
    """The capacity of this request: one that adapts shows in what is held beside the prompt's final token."""
    return min(kv.capacity, kv_tokens - 1) if kv.HasField("adaptive") else kv.capacity


def _model(model: plan_pb2.ModelInfo) -> Model:
    return Model(model.id, model.revision, model.context_tokens, model.tokenizer_fingerprint)
