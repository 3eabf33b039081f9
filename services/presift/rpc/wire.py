"""Conversions between messages that services share (`plan.proto`, `KvPlan`) and `core`.

Each servicer translates its own messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask, TokenMask
from presift.core.plan import ModelInfo, Route
from presift.core.policies import Adaptive, KvSelection, Policy, Pool, Reduction, SpecKv, SpecKvPc, SpecPc
from presift.core.spans import Span
from presift.v1 import plan_pb2, target_pb2

T = TypeVar("T", SpecPc, SpecKv)

_ROUTES: dict[Route, plan_pb2.Route] = {
    Route.FULL: plan_pb2.ROUTE_FULL,
    Route.SPEC_PC: plan_pb2.ROUTE_SPEC_PC,
    Route.SPEC_KV: plan_pb2.ROUTE_SPEC_KV,
    Route.SPEC_KV_PC: plan_pb2.ROUTE_SPEC_KV_PC,
}
_POOLS = {plan_pb2.POOL_NONE: Pool.NONE, plan_pb2.POOL_MAX: Pool.MAX, plan_pb2.POOL_MEAN: Pool.MEAN}
_REDUCTIONS = {plan_pb2.REDUCTION_MAX: Reduction.MAX, plan_pb2.REDUCTION_SUM: Reduction.SUM}
_SELECTIONS = {
    plan_pb2.KV_SELECTION_TARGET_LOOKAHEAD: KvSelection.TARGET_LOOKAHEAD,
    plan_pb2.KV_SELECTION_DRAFT_MASK: KvSelection.DRAFT_MASK,
}
# Fields of policies that are enums on the wire: name -> wire number -> meaning.
_ENUMS: dict[str, dict[Any, Any]] = {"pool": _POOLS, "reduction": _REDUCTIONS, "selection": _SELECTIONS}


def route_to_wire(route: Route) -> plan_pb2.Route:
    return _ROUTES[route]


def route_from_wire(route: int) -> Route | None:
    """None for UNSPECIFIED and AUTO. Raises InvalidRequest for a number that is no route."""
    if route in (plan_pb2.ROUTE_UNSPECIFIED, plan_pb2.ROUTE_AUTO):
        return None
    for known, wire in _ROUTES.items():
        if wire == route:
            return known
    raise InvalidRequest("route", route, f"one of {', '.join(plan_pb2.Route.keys()[1:])}")


def known_routes(routes: Iterable[int]) -> frozenset[Route]:
    """Those of a peer's routes that we know: a newer peer may serve more."""
    return frozenset(route for route, wire in _ROUTES.items() if wire in set(routes))


def policy_from_wire(policy: plan_pb2.Policy) -> Policy:
    """The policy with unset fields at their defaults. Raises InvalidRequest."""
    if policy.HasField("spec_pc"):
        return _values_from_wire(SpecPc, policy.spec_pc)
    if policy.HasField("spec_kv"):
        return _values_from_wire(SpecKv, policy.spec_kv)
    if policy.HasField("spec_kv_pc"):
        both = policy.spec_kv_pc
        return SpecKvPc(_values_from_wire(SpecPc, both.prompt), _values_from_wire(SpecKv, both.kv))
    raise InvalidRequest("policy", "unset", "one of spec_pc, spec_kv, spec_kv_pc")


def spec_kv_from_wire(policy: plan_pb2.SpecKv) -> SpecKv:
    """The policy with unset fields at their defaults. Raises InvalidRequest."""
    return _values_from_wire(SpecKv, policy)


def spec_kv_to_wire(policy: SpecKv) -> plan_pb2.SpecKv:
    """The policy with every field set."""
    return plan_pb2.SpecKv(**_values_to_wire(policy))


def policy_to_wire(policy: Policy) -> plan_pb2.Policy:
    """The policy with every field set."""
    if isinstance(policy, SpecPc):
        return plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(**_values_to_wire(policy)))
    if isinstance(policy, SpecKv):
        return plan_pb2.Policy(spec_kv=spec_kv_to_wire(policy))
    prompt = plan_pb2.SpecPc(**_values_to_wire(policy.prompt))
    return plan_pb2.Policy(spec_kv_pc=plan_pb2.SpecKvPc(prompt=prompt, kv=spec_kv_to_wire(policy.kv)))


def spans_from_wire(spans: Iterable[plan_pb2.Span]) -> tuple[Span, ...]:
    """Raises InvalidRequest for an empty or reversed span."""
    return tuple(Span(span.start, span.end) for span in spans)


def spans_to_wire(spans: Iterable[Span]) -> list[plan_pb2.Span]:
    return [plan_pb2.Span(start=span.start, end=span.end) for span in spans]


def token_ids_from_wire(ids: Iterable[int]) -> NDArray[np.uint32]:
    """uint32[tokens]."""
    # fromiter over a repeated field is twice as fast as np.array.
    return np.fromiter(ids, dtype=np.uint32)


def token_mask_to_wire(mask: TokenMask) -> plan_pb2.TokenMask:
    return plan_pb2.TokenMask(prompt_tokens=mask.prompt_tokens, kept=mask.to_bits())


def token_mask_from_wire(mask: plan_pb2.TokenMask) -> TokenMask:
    """Raises InvalidRequest if the bitset does not fit prompt_tokens."""
    return TokenMask.from_bits(mask.kept, mask.prompt_tokens)


def kv_mask_to_wire(mask: KvMask) -> plan_pb2.KvMask:
    layers, kv_heads, prompt_tokens = mask.kept.shape
    return plan_pb2.KvMask(layers=layers, kv_heads=kv_heads, prompt_tokens=prompt_tokens, kept=mask.to_bits())


def kv_mask_from_wire(mask: plan_pb2.KvMask) -> KvMask:
    """Raises InvalidRequest if the bitset does not fit the shape."""
    return KvMask.from_bits(mask.kept, mask.layers, mask.kv_heads, mask.prompt_tokens)


def kv_plan_to_wire(plan: KvPlan) -> target_pb2.KvPlan:
    """The plan with every field set."""
    return target_pb2.KvPlan(
        policy=spec_kv_to_wire(plan.policy),
        protected_spans=spans_to_wire(plan.protected),
        lookahead_token_ids=plan.lookahead_token_ids,
        kv_mask=None if plan.kv_mask is None else kv_mask_to_wire(plan.kv_mask),
        keep_full_prefix=plan.keep_full_prefix,
        prompt_tokens=plan.prompt_tokens,
        report_kept=plan.report_kept,
    )


def kv_plan_from_wire(plan: target_pb2.KvPlan) -> KvPlan:
    """The plan with unset fields at their defaults. Raises InvalidRequest."""
    return KvPlan(
        policy=spec_kv_from_wire(plan.policy),
        protected=spans_from_wire(plan.protected_spans),
        lookahead_token_ids=tuple(plan.lookahead_token_ids),
        kv_mask=kv_mask_from_wire(plan.kv_mask) if plan.HasField("kv_mask") else None,
        keep_full_prefix=plan.keep_full_prefix if plan.HasField("keep_full_prefix") else True,
        prompt_tokens=plan.prompt_tokens,
        report_kept=plan.report_kept,
    )


def model_to_wire(model: ModelInfo) -> plan_pb2.ModelInfo:
    return plan_pb2.ModelInfo(**{field.name: getattr(model, field.name) for field in fields(model)})


def model_from_wire(model: plan_pb2.ModelInfo) -> ModelInfo:
    return ModelInfo(**{field.name: getattr(model, field.name) for field in fields(ModelInfo)})


def _values_from_wire(kind: type[T], message: Any) -> T:
    values: dict[str, Any] = {}
    for field in fields(kind):
        value = getattr(message, field.name)
        if field.name in _ENUMS:
            value = _enum_from_wire(field.name, value)
        elif field.name == "mask":
            value = _mask_from_wire(message) if message.HasField("mask") else None
        elif field.name == "adaptive":
            value = _adaptive_from_wire(message.adaptive) if message.HasField("adaptive") else None
        elif field.name != "capacity" and not message.HasField(field.name):
            value = None
        if value is not None:
            values[field.name] = value
    return kind(**values)


def _mask_from_wire(policy: plan_pb2.SpecKv) -> SpecPc:
    mask = plan_pb2.SpecPc()
    mask.CopyFrom(policy.mask)
    # The policy's own are used; these only have to hold, and to be the same for the same policy.
    mask.capacity, mask.window = max(1, policy.capacity), 1
    mask.ClearField("adaptive")
    return _values_from_wire(SpecPc, mask)


def _adaptive_from_wire(adaptive: plan_pb2.Adaptive) -> Adaptive:
    step = adaptive.step if adaptive.HasField("step") else 1
    return Adaptive(adaptive.coverage, adaptive.min_capacity, step)


def _enum_from_wire(name: str, number: int) -> Any:
    if number == 0:
        return None
    if number not in _ENUMS[name]:
        raise InvalidRequest(f"policy.{name}", number, f"one of {sorted(_ENUMS[name])}")
    return _ENUMS[name][number]


def _values_to_wire(policy: SpecPc | SpecKv) -> dict[str, Any]:
    values = {field.name: getattr(policy, field.name) for field in fields(policy)}
    for name, table in _ENUMS.items():
        if name in values:
            values[name] = next(wire for wire, value in table.items() if value is values[name])
    if values.get("mask") is not None:
        values["mask"] = plan_pb2.SpecPc(**_values_to_wire(values["mask"]))
    if values["adaptive"] is not None:
        values["adaptive"] = plan_pb2.Adaptive(**asdict(values["adaptive"]))
    return values
