"""Predicted costs of routes, and the learned speeds that the predictions use, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from presift.v1 import orchestrator_pb2
from presift_client.wire import plain


@dataclass(frozen=True, slots=True)
class RouteForecast:
    """One route for one request. Times in milliseconds, counts in tokens; None if the route is not possible.

    `is_met`: the route is possible and meets the budget (or the default capacity, if no limit is set). `why_not` says
    in words why it does not.
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
    """The learned cost of a stage ("draft", "target", "scoring", "decoding") of `model` (id@revision) at a `replica`.

    Milliseconds for a call, a token read, a million pairs of tokens that attend to one another, a generated token.
    `contention` is the share of the shorter stage's work that is not hidden when draft and target work at the same
    time, 0..1. `early_renewals` ("decoding") are renewals of KV per generated token beside those of `renew_every`.
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
    early_renewals: float


def route_of(message: orchestrator_pb2.RouteForecast) -> RouteForecast:
    """One row of the table that AUTO chose from."""
    return plain(RouteForecast, message, is_met=message.met, is_chosen=message.chosen)


def speed_of(message: orchestrator_pb2.StageSpeed) -> StageSpeed:
    """The learned cost of one stage, from GetInfo."""
    return plain(StageSpeed, message)
