"""Enums of the orchestrator that its messages have too."""

from __future__ import annotations

from presift.orchestrator.domain.request import KvLookahead
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.decision import CacheOutcome
from presift.rpc.wire_enum import WireEnum
from presift.v1 import orchestrator_pb2

CACHE_OUTCOMES = WireEnum(CacheOutcome, orchestrator_pb2.CacheOutcome)
KV_LOOKAHEADS = WireEnum(KvLookahead, orchestrator_pb2.KvLookahead)
REASONS = WireEnum(Reason, orchestrator_pb2.DecisionReason)
