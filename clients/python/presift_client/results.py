"""The results of calls, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import chain

from presift.v1 import orchestrator_pb2, plan_pb2
from presift_client.answers import Delta, TokenLogprob, ToolCall, delta_of, logprobs_of, whole_calls
from presift_client.forecasts import StageSpeed, speed_of
from presift_client.wire import name_of, plain


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the orchestrator uses. Models with the same `tokenizer_fingerprint` use the same token ids.

    `head_profile` is the digest of a draft's head profile, empty without one.
    """

    id: str
    revision: str
    context_tokens: int
    tokenizer_fingerprint: str = ""
    head_profile: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was applied and why. Counts in tokens, times in milliseconds.

    `kept_tokens` is what the target reads, `kv_tokens` what it will hold. `coverage` is 0..1; None if the draft dropped
    nothing. `kv_capacity` (the result, if it adapts), `kv_selection`, `keep_full_prefix`, `renew_every`, `renew_window`
    and `first_full_tokens` are None unless KV is dropped. `kv_lookahead` is who made the lookahead, "draft" or
    "target"; None without one. `continued`: the selection of an earlier turn was used. `predicted_ttft_ms` counts from
    arrival at the orchestrator; None without a prediction. `cross_vocabulary`: draft and target use different token
    ids. The draft had kept `draft_cached_tokens` of an earlier prompt.
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
    draft_cached_tokens: int = 0
    kv_lookahead: str | None = None
    renew_every: int | None = None
    renew_window: int | None = None
    first_full_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The end of answer number `choice`. Counts in tokens, times in milliseconds; `ttft_ms` starts at arrival at the
    orchestrator. `warnings` say in words what may be unexpected, e.g. an answer that stopped at the default length.

    `kv_tokens` is what the prompt actually held. If KV was dropped: `reused_entry` says whether the target had the
    compressed entry, `score_ms` and `publish_ms` are the times to select and to copy the KV, and `coverage` is the
    share of the scoring queries' attention on kept KV.

    `renewals` counts how often KV was selected anew while the answer was generated, and `renewals_skipped` how often
    that was due and not done; `coverage` is then the last one and `coverage_min` the lowest. `accepted_tokens` began
    the answer without being decoded: the target confirmed the draft's lookahead. `kv_tokens_peak` and `kv_tokens_mean`
    count prompt and answer over the decode steps; 0 unless KV was dropped. `migrated` says whether a second target
    continued the answer, because the first one was lost (option `migrate`).
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
    choice: int = 0
    reasoning_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    warnings: tuple[str, ...] = ()
    renewals: int = 0
    renewals_skipped: int = 0
    accepted_tokens: int = 0
    kv_tokens_peak: int = 0
    kv_tokens_mean: float = 0.0
    coverage_min: float | None = None
    migrated: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several answers, with its usage."""

    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer with its decision and usage. `choices` are all answers: this one is the first of them."""

    text: str
    token_ids: tuple[int, ...]
    decision: Decision
    usage: Usage
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """The policy file in force: the SHA-256 of its bytes in hexadecimal, and when it was read (RFC 3339)."""

    digest: str
    loaded_at: str


@dataclass(frozen=True, slots=True)
class RouteQuality:
    """How well a route's answers agree with those of `full`, for prompts of `min_tokens` to `max_tokens`.

    `mean_agreement`, 0..1, decides whether the route is switched off. Its parts are `mean_overlap`, the share of tokens
    that both answers have in the same order, and `mean_fact_share`, the share of the facts of full's answer (numbers,
    identifiers, names, quoted strings) that the route's answer has too; None if no answer had facts. `exact_share` is
    0..1; `mean_first_divergence` is a token index, over the answers that were not identical. All are None without
    samples. `since` is when the route was last switched off or on, in UTC.
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
    mean_agreement: float | None = None
    mean_fact_share: float | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """One draft or target process (`role`). `breaker` is closed, open or half_open.

    `unused` says in words why a healthy replica gets no calls; empty if it is used.
    """

    address: str
    role: str
    healthy: bool
    breaker: str
    in_flight: int
    unused: str
    name: str


@dataclass(frozen=True, slots=True)
class Info:
    """The models and routes of an orchestrator. `draft` is None while no draft is known. The parsers separate tool
    calls and reasoning from answers, empty if there is none; `grammars`: whether answers can be restricted.
    `cache_unavailable`: the cache of compressed prompts did not answer the last time. `engine`: the target's, with its
    version, and "(untested)" if presift was not tested with it.

    `policy_file` is None if there is none. `speeds` are the learned costs of the stages, the last observed last.
    `restricted`: the key or token is no administrator's, so `speeds`, `route_quality` and `replicas` are empty.
    """

    draft: Model | None
    target: Model
    supported_routes: tuple[str, ...]
    compress_above_tokens: int
    policy_file: PolicyFile | None = None
    route_quality: tuple[RouteQuality, ...] = ()
    speeds: tuple[StageSpeed, ...] = ()
    replicas: tuple[Replica, ...] = ()
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    grammars: bool = False
    cache_unavailable: bool = False
    restricted: bool = False
    engine: str = ""


Event = Decision | Delta | Usage


def event_of(response: orchestrator_pb2.GenerateResponse) -> Event:
    """One event of the stream."""
    if response.HasField("decision"):
        return decision_of(response.decision)
    if response.HasField("usage"):
        return _usage(response.usage)
    return delta_of(response.delta)


def gather(events: Iterable[Event]) -> Generation:
    """The whole answers from their events. Raises ValueError without a decision, or without a usage of each answer."""
    deltas: dict[int, list[Delta]] = {0: []}
    usages: dict[int, Usage] = {}
    decision: Decision | None = None
    for event in events:
        if isinstance(event, Delta):
            deltas.setdefault(event.choice, []).append(event)
        elif isinstance(event, Decision):
            decision = event
        else:
            usages[event.choice] = event
    if decision is None or not usages.keys() >= deltas.keys():
        raise ValueError("the stream ended without a decision or a usage")
    choices = tuple(_choice(deltas.get(number, ()), usages[number]) for number in sorted(usages))
    first = {field.name: getattr(choices[0], field.name) for field in fields(Choice)}
    return Generation(decision=decision, choices=choices, **first)


def _choice(deltas: Sequence[Delta], usage: Usage) -> Choice:
    chained = chain.from_iterable
    return Choice(
        "".join(delta.text for delta in deltas),
        tuple(chained(delta.token_ids for delta in deltas)),
        usage,
        "".join(delta.reasoning for delta in deltas),
        whole_calls(chained(delta.tool_calls for delta in deltas)),
        tuple(chained(delta.logprobs for delta in deltas)),
    )


def _usage(usage: orchestrator_pb2.Usage) -> Usage:
    return plain(Usage, usage, prompt_logprobs=logprobs_of(usage.prompt_logprobs), warnings=tuple(usage.warnings))


def decision_of(decision: orchestrator_pb2.Decision) -> Decision:
    """A decision with names instead of numbers: `spec_pc`, `over_budget`, `hit`."""
    kv = _spec_kv(decision.policy)
    return plain(
        Decision,
        decision,
        draft=_model(decision.draft) if decision.HasField("draft") else None,
        target=_model(decision.target),
        kv_capacity=None if kv is None else _capacity(kv, decision.kv_tokens),
        kv_selection=None if kv is None else name_of(plan_pb2.KvSelection.DESCRIPTOR, kv.selection),
        kv_lookahead=_lookahead(decision) if decision.HasField("lookahead") else None,
        renew_every=None if kv is None else kv.renew_every,
        renew_window=None if kv is None else kv.renew_window,
        first_full_tokens=None if kv is None else kv.first_full_tokens,
    )


def _lookahead(decision: orchestrator_pb2.Decision) -> str:
    return name_of(orchestrator_pb2.KvLookahead.DESCRIPTOR, decision.lookahead)


def info_of(info: orchestrator_pb2.GetInfoResponse) -> Info:
    """The response of GetInfo."""
    return plain(
        Info,
        info,
        draft=_model(info.draft) if info.HasField("draft") else None,
        target=_model(info.target),
        supported_routes=tuple(name_of(plan_pb2.Route.DESCRIPTOR, route) for route in info.supported_routes),
        policy_file=_policy_file(info.policy_file) if info.HasField("policy_file") else None,
        route_quality=tuple(_quality(each) for each in info.route_quality),
        speeds=tuple(speed_of(speed) for speed in info.speeds),
        replicas=tuple(plain(Replica, replica) for replica in info.replicas),
    )


def _quality(quality: orchestrator_pb2.RouteQuality) -> RouteQuality:
    since = quality.since.ToDatetime(UTC) if quality.HasField("since") else None
    return plain(RouteQuality, quality, since=since)


def _policy_file(file: orchestrator_pb2.PolicyFile) -> PolicyFile:
    return plain(PolicyFile, file, loaded_at=file.loaded_at.ToJsonString())


def _spec_kv(policy: plan_pb2.Policy) -> plan_pb2.SpecKv | None:
    """The policy that dropped KV, if one did."""
    name = policy.WhichOneof("policy")
    message = None if name is None else getattr(policy, name)
    return message if isinstance(message, plan_pb2.SpecKv) else getattr(message, "kv", None)


def _capacity(kv: plan_pb2.SpecKv, kv_tokens: int) -> int:
    """This request's capacity. An adaptive one is what the prompt holds, less its final token."""
    return min(kv.capacity, kv_tokens - 1) if kv.HasField("adaptive") else kv.capacity


def _model(model: plan_pb2.ModelInfo) -> Model:
    return plain(Model, model)
