"""Protobuf messages for route forecasts and for the measured costs of stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from presift.core.plan import Route
from presift.orchestrator.estimation.perf_model import LearnedCost, split_location
from presift.orchestrator.routing.candidates import Candidate
from presift.rpc import codec
from presift.v1 import orchestrator_pb2

_COSTS = ("ttft_ms", "draft_ms", "target_ms", "step_ms", "read_tokens", "kv_tokens")


def routes_to_wire(table: Iterable[Candidate], chosen: Route | None) -> list[orchestrator_pb2.RouteForecast]:
    """The candidates in their order; `chosen` is None if the request was rejected."""
    return [_route_to_wire(each, is_chosen=each.route is chosen) for each in table]


def speed_to_wire(speed: LearnedCost) -> orchestrator_pb2.StageSpeed:
    model, replica = split_location(speed.location)
    return orchestrator_pb2.StageSpeed(
        stage=speed.stage,
        model=model,
        replica=replica,
        contention=speed.contention,
        early_renewals=speed.early_renewals,
        **asdict(speed.curve),
    )


def _route_to_wire(candidate: Candidate, *, is_chosen: bool) -> orchestrator_pb2.RouteForecast:
    found, is_met = candidate.forecast, candidate.choice is not None and not candidate.over
    costs = {} if found is None else {name: getattr(found, name) for name in _COSTS}
    return orchestrator_pb2.RouteForecast(
        route=codec.route_to_wire(candidate.route),
        met=is_met,
        why_not="" if is_met else candidate.why,
        chosen=is_chosen,
        **costs,
    )
