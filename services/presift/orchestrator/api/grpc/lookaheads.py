"""Who generates the lookahead, as messages have it."""

from __future__ import annotations

from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import KvLookahead
from presift.v1 import orchestrator_pb2

_WIRE: dict[KvLookahead, Any] = {
    each: orchestrator_pb2.KvLookahead.Value(f"KV_LOOKAHEAD_{each.name}") for each in KvLookahead
}


def lookahead_to_wire(lookahead: KvLookahead) -> orchestrator_pb2.KvLookahead:
    wire: orchestrator_pb2.KvLookahead = _WIRE[lookahead]
    return wire


def lookahead_from_wire(lookahead: int) -> KvLookahead | None:
    """None for UNSPECIFIED. Raises InvalidRequest for an unknown number."""
    if lookahead == orchestrator_pb2.KV_LOOKAHEAD_UNSPECIFIED:
        return None
    for known, wire in _WIRE.items():
        if wire == lookahead:
            return known
    raise InvalidRequest("kv.lookahead", lookahead, f"one of {', '.join(orchestrator_pb2.KvLookahead.keys()[1:])}")
