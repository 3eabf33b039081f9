"""What routes are predicted to cost, and the learnt speeds that this rests on, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from presift.v1 import orchestrator_pb2, plan_pb2
from presift_client.names import name_of

_COSTS = ("ttft_ms", "draft_ms", "target_ms", "step_ms", "read_tokens", "kv_tokens")


@dataclass(frozen=True, slots=True)
class RouteForecast:
    """A route as one request would get it. Times in milliseconds and counts in tokens, None where it cannot be.

    `is_met`: it keeps the budget (or the default capacity); `why_not` says in words what is in its way.
    """

    route: str
    is_met: bool
    why_not: str = ""
    is_chosen: bool = False
    ttft_ms: float | None = None
    draft_ms: float | None = None
    target_ms: float | None = None
    step_ms: float | None = None
    read_tokens: int | None = None
    kv_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """The learnt cost of a stage ("draft", "target", "scoring", "decoding") of `model` (id@revision) at a `replica`:
    milliseconds for a call, a token, a million pairs of tokens that attend to one another, a generated token.

    `contention`: the share of the shorter work that is not hidden where draft and target work at once, 0..1.
    """

    stage: str
    model: str
    replica: str
    call_ms: float
    token_ms: float
    megapair_ms: float
    step_ms: float
    observations: int
    contention: float


def route_of(message: orchestrator_pb2.RouteForecast) -> RouteForecast:
    """One row of the table that AUTO chose from."""
    costs = {name: getattr(message, name) for name in _COSTS if message.HasField(name)}
    name = name_of(plan_pb2.Route, message.route, "ROUTE")
    return RouteForecast(name, message.met, message.why_not, message.chosen, **costs)


def speed_of(message: orchestrator_pb2.StageSpeed) -> StageSpeed:
    """What GetInfo says of one stage."""
    return StageSpeed(
        stage=message.stage,
        model=message.model,
        replica=message.replica,
        call_ms=message.call_ms,
        token_ms=message.token_ms,
        megapair_ms=message.megapair_ms,
        step_ms=message.step_ms,
        observations=message.observations,
        contention=message.contention,
    )
