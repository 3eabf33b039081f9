"""Sizing: the fewest drafts, targets and orchestrators that hold a load within a bound of utilisation. Pure.

A draft scores one prompt after the other, and whoever is free takes the next: a waiting line with several servers
(`queueing`).

A target reads prompts and, between them, takes decode steps in which all its requests move on by a token. With `l`
requests a second at one target, `R` seconds to read one, `A` tokens to answer, a step of `c + B s` seconds for `B`
requests that decode: reading takes the share `l R` of the time and leaves `1 - l R` for steps, so a token takes `(c +
B s) / (1 - l R)`. By Little's law `B` is `l A` times that, hence `B = l A c / (1 - l (R + A s))`. What no batch saves
is `l (R + A s)`: that is the utilisation. `s` is what a token costs in a prompt, and the reading of the KV that the
request holds.

An orchestrator's processor time for a request was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from presift.cli.planning import queueing
from presift.cli.planning.workload import Demand, Workload, mean
from presift.core.errors import InvalidRequest
from presift.orchestrator.routing.cost_model import StageCosts

# tests/bench/LOG.md, orchestrator_capacity.py: processor milliseconds of an orchestrator, one core of it is used.
REQUEST_MS, PROMPT_TOKEN_MS, ANSWER_TOKEN_MS = 3.4, 0.0012, 0.17


@dataclass(frozen=True, slots=True)
class Limits:
    """`utilisation` of any replica's time and KV at most; `max_running` requests at once and `kv_pool_tokens` in a
    target. Raises InvalidRequest."""

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
class Need:
    """Replicas of one role. `utilisation` of each, `bound_by` what decided on their number, mean `wait_s` before one
    begins with a request (0 where that is not reckoned)."""

    replicas: int
    utilisation: float
    bound_by: str
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Targets:
    """As `Need`, and of each target: requests that decode at once, KV tokens held, seconds for a token of an answer."""

    need: Need
    decoding: float
    kv_tokens: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """All roles."""

    drafts: Need
    targets: Targets
    orchestrators: Need


def sizes(workload: Workload, asked: Sequence[Demand], speeds: StageCosts, limits: Limits) -> Sizes:
    """What this load needs. Raises InvalidRequest for a request that fits no target by itself."""
    return Sizes(
        drafts(workload, asked, limits),
        targets(workload, asked, speeds, limits),
        orchestrators(workload, asked, limits),
    )


def drafts(workload: Workload, asked: Sequence[Demand], limits: Limits) -> Need:
    """None where nothing is compressed."""
    drafting = [(each.draft_s, each.share) for each in asked if each.draft_s > 0]
    rate = workload.rate * sum(share for _, share in drafting) * (1 - workload.cache_hits)
    mean_s, scv = queueing.spread(drafting)
    if not rate * mean_s:
        return Need(0, 0.0, "no draft is asked")
    replicas = queueing.servers_for(rate * mean_s, limits.utilisation)
    wait_s = queueing.mean_wait_s(replicas, rate, mean_s, scv)
    return Need(replicas, rate * mean_s / replicas, "time", wait_s)


def targets(workload: Workload, asked: Sequence[Demand], speeds: StageCosts, limits: Limits) -> Targets:
    """The fewest that hold utilisation, requests at once and KV."""
    most = max(each.peak_tokens for each in asked) + workload.answer_tokens
    if most > limits.kv_pool_tokens:
        raise InvalidRequest("kv_pool_tokens", limits.kv_pool_tokens, f"at least {most}: what one request may hold")
    bounds: dict[str, Callable[[Targets], bool]] = {
        "time": lambda one: one.need.utilisation <= limits.utilisation,
        "requests at once": lambda one: one.decoding <= limits.max_running,
        "KV memory": lambda one: one.kv_tokens <= limits.kv_pool_tokens * limits.utilisation,
    }
    fewest = {name: _fewest(lambda count: each_of(count, workload, asked, speeds), bounds[name]) for name in bounds}
    bound_by = max(fewest, key=lambda name: fewest[name])
    return each_of(fewest[bound_by], workload, asked, speeds, bound_by)


def _fewest(each: Callable[[int], Targets], holds: Callable[[Targets], bool]) -> int:
    """The smallest number for which it holds, as it does for every larger one. Raises InvalidRequest beyond MOST."""
    high = 1
    while not holds(each(high)):
        high *= 2
        if high > queueing.MOST:
            raise InvalidRequest("rate", "too high", f"what {queueing.MOST} targets take")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(each(middle)) else (middle, high)
    return high


def each_of(
    replicas: int, workload: Workload, asked: Sequence[Demand], speeds: StageCosts, bound_by: str = ""
) -> Targets:
    """How each of so many targets does; where it cannot keep up all but the utilisation is infinite."""
    rate, answer = workload.rate / replicas, workload.answer_tokens
    reading = [(each.target_s, each.share) for each in asked]
    read_s, scv = queueing.spread(reading)
    held = mean(asked, lambda each: each.held_tokens) + answer / 2
    step_s = speeds.decoding.call_ms / 1e3
    request_s = (speeds.target.token_ms + speeds.decoding.token_ms * held) / 1e3
    used = rate * (read_s + answer * request_s)
    if used >= 1:
        inf = float("inf")
        return Targets(Need(replicas, used, bound_by, inf), inf, inf, inf)
    decoding = rate * answer * step_s / (1 - used)
    reading_kv = rate * mean(asked, lambda each: each.target_s * each.peak_tokens)
    wait_s = queueing.mean_wait_s(1, rate, read_s, scv)
    token_s = (step_s + decoding * request_s) / (1 - rate * read_s)
    return Targets(Need(replicas, used, bound_by, wait_s), decoding, decoding * held + reading_kv, token_s)


def orchestrators(workload: Workload, asked: Sequence[Demand], limits: Limits) -> Need:
    """By processor time."""
    tokens = mean(asked, lambda each: each.tokens)
    request_s = (REQUEST_MS + PROMPT_TOKEN_MS * tokens + ANSWER_TOKEN_MS * workload.answer_tokens) / 1e3
    replicas = queueing.servers_for(workload.rate * request_s, limits.utilisation)
    return Need(replicas, workload.rate * request_s / replicas, "time")
