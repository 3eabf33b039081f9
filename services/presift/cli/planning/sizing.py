"""Sizing: the fewest drafts, targets and orchestrators that serve a load within a utilisation limit. Pure.

Drafts: each scores one prompt at a time, and a free draft takes the next prompt. That is a queue with several servers
(`queueing`).

Targets: each reads prompts and, between them, runs decode steps that extend all its answers by a token. Let `l` be the
requests per second at one target, `R` the seconds to read one prompt, `A` the tokens of an answer, and `c + B s` the
seconds of a step with `B` answers. Reading takes the share `l R` of the time, so a token takes `(c + B s) / (1 - l R)`.
By Little's law `B` is `l A` times that, hence `B = l A c / (1 - l (R + A s))`. The work that batching does not save is
`l (R + A s)`; that is the utilisation. `s` is the cost of a prompt token plus the cost of reading the answer's KV.

Orchestrators: their processor time per request was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from presift.cli.planning import queueing
from presift.cli.planning.workload import LengthWork, Workload, weighted_mean
from presift.core.errors import InvalidRequest
from presift.orchestrator.routing.cost_model import StageCosts

# Processor milliseconds of an orchestrator, which uses one core (tests/bench/LOG.md, orchestrator_capacity.py).
REQUEST_MS, PROMPT_TOKEN_MS, ANSWER_TOKEN_MS = 3.4, 0.0012, 0.17


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a replica: `utilisation` of its time and KV, and for a target `max_running` concurrent requests and
    `kv_pool_tokens`. Raises InvalidRequest."""

    kv_pool_tokens: int
    max_running: int = 16
    utilisation: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.utilisation < 1:
            raise InvalidRequest("utilisation", self.utilisation, "above 0 and below 1")
        for name in ("kv_pool_tokens", "max_running"):
            if getattr(self, name) < 1:
                raise InvalidRequest(name, getattr(self, name), "at least 1")


@dataclass(frozen=True, slots=True)
class RoleSize:
    """Replicas of one role. `utilisation`: of each; `bound_by`: the limit that decides their number; `wait_s`: the mean
    wait of a request, 0 if it is not calculated."""

    replicas: int
    utilisation: float
    bound_by: str
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TargetSize:
    """The number of targets, and for each: concurrent answers, KV tokens held, seconds per token of an answer."""

    size: RoleSize
    decoding: float
    kv_tokens: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """Replicas of all roles."""

    drafts: RoleSize
    targets: TargetSize
    orchestrators: RoleSize


def sizes(workload: Workload, work: Sequence[LengthWork], speeds: StageCosts, limits: Limits) -> Sizes:
    """The replicas that this load needs. Raises InvalidRequest if a single request exceeds a target's KV pool."""
    return Sizes(
        drafts(workload, work, limits),
        targets(workload, work, speeds, limits),
        orchestrators(workload, work, limits),
    )


def drafts(workload: Workload, work: Sequence[LengthWork], limits: Limits) -> RoleSize:
    """The drafts needed; no replicas if nothing is compressed."""
    drafting = [(each.draft_s, each.share) for each in work if each.draft_s > 0]
    rate = workload.rate * sum(share for _, share in drafting) * (1 - workload.cache_hits)
    mean_s, scv = queueing.spread(drafting)
    if not rate * mean_s:
        return RoleSize(0, 0.0, "no draft is needed")
    replicas = queueing.servers_for(rate * mean_s, limits.utilisation)
    wait_s = queueing.mean_wait_s(replicas, rate, mean_s, scv)
    return RoleSize(replicas, rate * mean_s / replicas, "time", wait_s)


def targets(workload: Workload, work: Sequence[LengthWork], speeds: StageCosts, limits: Limits) -> TargetSize:
    """The fewest targets within the limits of utilisation, concurrent requests and KV."""
    most_tokens = max(each.peak_tokens for each in work) + workload.answer_tokens
    if most_tokens > limits.kv_pool_tokens:
        limit = f"at least {most_tokens}, the KV tokens of one request"
        raise InvalidRequest("kv_pool_tokens", limits.kv_pool_tokens, limit)
    bounds: dict[str, Callable[[TargetSize], bool]] = {
        "time": lambda one: one.size.utilisation <= limits.utilisation,
        "concurrent requests": lambda one: one.decoding <= limits.max_running,
        "KV memory": lambda one: one.kv_tokens <= limits.kv_pool_tokens * limits.utilisation,
    }
    fewest = {
        name: _fewest(lambda count: load_per_target(count, workload, work, speeds), bounds[name]) for name in bounds
    }
    bound_by = max(fewest, key=lambda name: fewest[name])
    return load_per_target(fewest[bound_by], workload, work, speeds, bound_by)


def _fewest(size_of: Callable[[int], TargetSize], is_enough: Callable[[TargetSize], bool]) -> int:
    """The smallest number that is enough, by bisection. Raises InvalidRequest above MAX_SERVERS."""
    high = 1
    while not is_enough(size_of(high)):
        high *= 2
        if high > queueing.MAX_SERVERS:
            raise InvalidRequest("rate", "too high", f"at most what {queueing.MAX_SERVERS:,} targets can serve")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(size_of(middle)) else (middle, high)
    return high


def load_per_target(
    replicas: int, workload: Workload, work: Sequence[LengthWork], speeds: StageCosts, bound_by: str = ""
) -> TargetSize:
    """The load of each of `replicas` targets; if they cannot keep up, everything but the utilisation is infinite."""
    rate, answer = workload.rate / replicas, workload.answer_tokens
    reading = [(each.target_s, each.share) for each in work]
    read_s, scv = queueing.spread(reading)
    held_tokens = weighted_mean(work, lambda each: each.held_tokens) + answer / 2
    step_s = speeds.decoding.call_ms / 1e3
    request_s = (speeds.target.token_ms + speeds.decoding.token_ms * held_tokens) / 1e3
    utilisation = rate * (read_s + answer * request_s)
    if utilisation >= 1:
        inf = float("inf")
        return TargetSize(RoleSize(replicas, utilisation, bound_by, inf), inf, inf, inf)
    decoding = rate * answer * step_s / (1 - utilisation)
    reading_tokens = rate * weighted_mean(work, lambda each: each.target_s * each.peak_tokens)
    wait_s = queueing.mean_wait_s(1, rate, read_s, scv)
    token_s = (step_s + decoding * request_s) / (1 - rate * read_s)
    return TargetSize(
        RoleSize(replicas, utilisation, bound_by, wait_s), decoding, decoding * held_tokens + reading_tokens, token_s
    )


def orchestrators(workload: Workload, work: Sequence[LengthWork], limits: Limits) -> RoleSize:
    """The orchestrators needed, by processor time."""
    tokens = weighted_mean(work, lambda each: each.tokens)
    request_s = (REQUEST_MS + PROMPT_TOKEN_MS * tokens + ANSWER_TOKEN_MS * workload.answer_tokens) / 1e3
    replicas = queueing.servers_for(workload.rate * request_s, limits.utilisation)
    return RoleSize(replicas, workload.rate * request_s / replicas, "time")
