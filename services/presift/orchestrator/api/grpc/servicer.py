"""OrchestratorService over gRPC: decodes requests, runs the pipeline, encodes its events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from presift.orchestrator.api.auth.claimed_tenant import tenant_from_metadata
from presift.orchestrator.api.grpc.forecasts import speed_to_wire
from presift.orchestrator.api.grpc.requests import explain_request_from_wire, request_from_wire
from presift.orchestrator.api.grpc.responses import (
    event_to_wire,
    explanation_to_wire,
    policy_file_to_wire,
    quality_to_wire,
    replica_to_wire,
)
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.domain.caller import Caller, current_caller, sees_whole_service
from presift.orchestrator.pipeline.events import Event, held_bytes
from presift.orchestrator.pipeline.explainer import check_explains
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.explain import Detail
from presift.orchestrator.routing.decision import Decision
from presift.rpc import codec
from presift.rpc.deadline import Deadline
from presift.rpc.large_input import in_thread_if_large, received_bytes
from presift.rpc.server.handlers import Context
from presift.v1 import orchestrator_pb2, orchestrator_pb2_grpc


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """presift.v1.OrchestratorService, served by a Pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        models: ModelRegistry,
        policies: PolicySource,
        *,
        explains: bool = True,
        salt: str = "",
    ) -> None:
        """`salt` is the deployment's; the salt of an authenticated tenant is derived from it."""
        self._pipeline = pipeline
        self._models = models
        self._policies = policies
        self._explains = explains
        self._salt = salt

    async def Generate(
        self, request: orchestrator_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.GenerateResponse]:
        caller, salt, size = _caller(context), self._salt, received_bytes.get()
        parsed = await in_thread_if_large(size, lambda: request_from_wire(request, caller, salt))
        async with aclosing(self._pipeline.generate(parsed, Deadline.within(context.time_remaining()))) as events:
            async for event in events:
                yield await _to_wire(event)

    async def Explain(self, request: orchestrator_pb2.ExplainRequest, context: Context) -> Any:
        """ExplainResponse, already serialized: as a message it takes ten times as much memory until it is read."""
        check_explains(self._explains)
        caller, salt = _caller(context), self._salt
        parsed = await in_thread_if_large(
            received_bytes.get(), lambda: explain_request_from_wire(request, caller, salt)
        )
        detail = Detail(kv_mask=request.include_kv_mask, span_per_token=request.span_per_token)
        deadline = Deadline.within(context.time_remaining())
        return await self._pipeline.explainer.explain(
            parsed, detail, lambda explained: explanation_to_wire(explained).SerializeToString(), deadline
        )

    async def GetInfo(
        self, request: orchestrator_pb2.GetInfoRequest, context: Context
    ) -> orchestrator_pb2.GetInfoResponse:
        target = self._pipeline.target_info()
        draft = self._models.draft
        info = orchestrator_pb2.GetInfoResponse(
            draft=None if draft is None else codec.model_to_wire(draft),
            target=codec.model_to_wire(target.model),
            supported_routes=sorted(codec.route_to_wire(route) for route in target.supported),
            compress_above_tokens=self._policies.table.compress_above_tokens(target.model.id),
            policy_file=policy_file_to_wire(self._policies.file),
            tool_call_parser=target.tool_call_parser,
            reasoning_parser=target.reasoning_parser,
            grammars=target.grammars,
            cache_unavailable=not self._pipeline.parts.store.is_available,
            restricted=not sees_whole_service(),
            engine=target.engine,
        )
        if not info.restricted:
            info.route_quality.extend(quality_to_wire(each) for each in self._pipeline.parts.guard.qualities())
            info.speeds.extend(speed_to_wire(speed) for speed in self._pipeline.stage_costs())
            info.replicas.extend(replica_to_wire(each) for each in self._models.statuses())
        return info


async def _to_wire(event: Event) -> orchestrator_pb2.GenerateResponse:
    """The event as a message. The log probabilities of a prompt, or of deltas that were joined, take long."""
    size = 0 if isinstance(event, Decision) else held_bytes(event)
    return await in_thread_if_large(size, lambda: event_to_wire(event))


def _caller(context: Context) -> Caller:
    """The authenticated caller; without authentication, whoever the metadata names. Raises InvalidRequest."""
    return current_caller() or Caller(tenant_from_metadata(context.invocation_metadata()))
