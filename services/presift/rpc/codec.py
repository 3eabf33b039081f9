"""Conversions between messages that services share (`plan.proto`, `KvPlan`) and `core`.

Each servicer translates its own messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask, TokenMask
from presift.core.plan import ModelInfo, Route
from presift.core.policies import POLICIES, Adaptive, Heads, KvSelection, Policy, Pool, Reduction, SpecKv, SpecPc
from presift.core.spans import Span
from presift.rpc.wire_enum import WireEnum
from presift.v1 import plan_pb2, target_pb2

T = TypeVar("T", bound=Policy)

# Routes and policies have the same names on the wire.
_ROUTES = WireEnum(Route, plan_pb2.Route)
KV_SELECTIONS = WireEnum(KvSelection, plan_pb2.KvSelection)
# Fields of policies that are enums on the wire.
_ENUMS: dict[str, WireEnum[Any]] = {
    "pool": WireEnum(Pool, plan_pb2.Pool),
    "reduction": WireEnum(Reduction, plan_pb2.Reduction),
    "selection": KV_SELECTIONS,
    "heads": WireEnum(Heads, plan_pb2.ScoredHeads),
}
# Fields of policies that are policies themselves.
_STAGES: dict[str, type[Policy]] = {"prompt": SpecPc, "kv": SpecKv}


def route_to_wire(route: Route) -> plan_pb2.Route:
    wire: plan_pb2.Route = _ROUTES.to_wire(route)
    return wire


def set_fields(message: Message, *names: str) -> dict[str, Any]:
    """The optional fields among `names` that are set, by name."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def route_from_wire(route: int) -> Route | None:
    """The route; None for UNSPECIFIED and AUTO. Raises InvalidRequest for an unknown number."""
    return None if route == plan_pb2.ROUTE_AUTO else _ROUTES.from_wire(route, "route")


def known_routes(routes: Iterable[int]) -> frozenset[Route]:
    """The routes of a peer that this version knows. A newer peer may have more."""
    return frozenset(known for route in routes if (known := _ROUTES.known(route)))


def policy_from_wire(policy: plan_pb2.Policy) -> Policy:
    """The policy with unset fields at their defaults. Raises InvalidRequest."""
    name = policy.WhichOneof("policy")
    if name is None:
        raise InvalidRequest("policy", "unset", f"one of {', '.join(POLICIES)}")
    return _fields_from_wire(POLICIES[name], getattr(policy, name))


def spec_kv_from_wire(policy: plan_pb2.SpecKv) -> SpecKv:
    """The policy with unset fields at their defaults. Raises InvalidRequest."""
    return _fields_from_wire(SpecKv, policy)


def spec_kv_to_wire(policy: SpecKv) -> plan_pb2.SpecKv:
    """The policy with every field set."""
    return plan_pb2.SpecKv(**_fields_to_wire(policy))


def policy_to_wire(policy: Policy) -> plan_pb2.Policy:
    """The policy with every field set."""
    return plan_pb2.Policy(**{policy.route.value: _fields_to_wire(policy)})


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


def _fields_from_wire(kind: type[T], message: Any) -> T:
    """A policy or one of its stages, from a message with the same field names. Unset fields get defaults."""
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]  # every policy is a dataclass
        value = _field_from_wire(field.name, message)
        if value is not None:
            values[field.name] = value
    return kind(**values)


def _field_from_wire(name: str, message: Any) -> Any:
    if name in _STAGES:
        return _fields_from_wire(_STAGES[name], getattr(message, name))
    if name in _ENUMS:
        return _ENUMS[name].from_wire(getattr(message, name), f"policy.{name}")
    if name != "capacity" and not message.HasField(name):
        return None
    if name == "mask":
        return _mask_from_wire(message)
    return _adaptive_from_wire(message.adaptive) if name == "adaptive" else getattr(message, name)


def _mask_from_wire(policy: plan_pb2.SpecKv) -> SpecPc:
    mask = plan_pb2.SpecPc()
    mask.CopyFrom(policy.mask)
    # Nothing reads this capacity and window. They must only be valid, and equal for equal policies.
    mask.capacity, mask.window = max(1, policy.capacity), 1
    mask.ClearField("adaptive")
    return _fields_from_wire(SpecPc, mask)


def _adaptive_from_wire(adaptive: plan_pb2.Adaptive) -> Adaptive:
    step = adaptive.step if adaptive.HasField("step") else 1
    return Adaptive(adaptive.coverage, adaptive.min_capacity, step)


def _fields_to_wire(policy: Any) -> dict[str, Any]:
    """All set fields by name. A stage or `adaptive` becomes a dictionary."""
    values = {field.name: getattr(policy, field.name) for field in fields(policy)}
    return {name: _field_to_wire(name, value) for name, value in values.items() if value is not None}


def _field_to_wire(name: str, value: Any) -> Any:
    if name in _ENUMS:
        return _ENUMS[name].to_wire(value)
    return _fields_to_wire(value) if is_dataclass(value) else value
