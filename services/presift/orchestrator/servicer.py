"""The orchestrator's wire: requests to values, events to messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from presift.core.errors import InvalidRequest
from presift.orchestrator.decision import CacheUse, Decision
from presift.orchestrator.explanation import ExplainedSpan
from presift.orchestrator.models import Models
from presift.orchestrator.pipeline import Delta, Event, Pipeline
from presift.orchestrator.pipeline import Report as PipelineReport
from presift.orchestrator.ports import FinishReason
from presift.orchestrator.request import Budget, Chat, Message, Prompt, Request, Sampling, Text, TextPart, TokenIds
from presift.orchestrator.routing import Defaults, Reason
from presift.rpc import wire
from presift.v1 import orchestrator_pb2, orchestrator_pb2_grpc, plan_pb2, target_pb2

_CACHE: dict[CacheUse, Any] = {
    use: orchestrator_pb2.CacheOutcome.Value(f"CACHE_OUTCOME_{use.name}") for use in CacheUse
}
_REASONS: dict[Reason, Any] = {
    reason: orchestrator_pb2.DecisionReason.Value(f"DECISION_REASON_{reason.name}") for reason in Reason
}
_FINISH: dict[FinishReason, Any] = {
    finish: target_pb2.FinishReason.Value(f"FINISH_REASON_{finish.name}") for finish in FinishReason
}
if TYPE_CHECKING:  # grpc generics exist in the stubs alone
    Context = grpc.aio.ServicerContext[Any, Any]


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """presift.v1.OrchestratorService over a Pipeline."""

    def __init__(self, pipeline: Pipeline, models: Models, defaults: Defaults) -> None:
        self._pipeline = pipeline
        self._models = models
        self._defaults = defaults

    async def Generate(
        self, request: orchestrator_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.GenerateResponse]:
        parsed = request_from_wire(request)
        async with aclosing(self._pipeline.generate(parsed, context.time_remaining())) as events:
            async for event in events:
                yield event_to_wire(event)

    async def Explain(
        self, request: orchestrator_pb2.ExplainRequest, context: Context
    ) -> orchestrator_pb2.ExplainResponse:
        parsed = Request(
            prompt_from_wire(request.prompt), wire.route_from_wire(request.route), budget_from_wire(request.budget)
        )
        decision, spans = await self._pipeline.explain(parsed)
        return orchestrator_pb2.ExplainResponse(
            decision=decision_to_wire(decision), spans=[explained_to_wire(span) for span in spans]
        )

    async def GetInfo(
        self, request: orchestrator_pb2.GetInfoRequest, context: Context
    ) -> orchestrator_pb2.GetInfoResponse:
        target = self._pipeline.target_info()
        draft = self._models.draft
        return orchestrator_pb2.GetInfoResponse(
            draft=None if draft is None else wire.model_to_wire(draft),
            target=wire.model_to_wire(target.model),
            supported_routes=sorted(wire.route_to_wire(route) for route in target.supported),
            compress_above_tokens=self._defaults.compress_above_tokens,
        )


def request_from_wire(request: orchestrator_pb2.GenerateRequest) -> Request:
    """Raises InvalidRequest, naming the field."""
    return Request(
        prompt=prompt_from_wire(request.prompt),
        route=wire.route_from_wire(request.route),
        budget=budget_from_wire(request.budget),
        sampling=sampling_from_wire(request.sampling),
    )


def prompt_from_wire(prompt: orchestrator_pb2.Prompt) -> Prompt:
    kind = prompt.WhichOneof("prompt")
    if kind == "token_ids":
        return TokenIds(wire.token_ids_from_wire(prompt.token_ids.ids), wire.spans_from_wire(prompt.protected_spans))
    if prompt.protected_spans:
        raise InvalidRequest("prompt.protected_spans", f"set on a {kind} prompt", "set on token_ids prompts only")
    if kind == "text":
        return Text(prompt.text)
    if kind == "chat":
        messages = tuple(_message(message) for message in prompt.chat.messages)
        return Chat(messages, tuple(prompt.chat.tools_json))
    raise InvalidRequest("prompt", "unset", "one of text, chat, token_ids")


def _message(message: orchestrator_pb2.Message) -> Message:
    return Message(message.role, tuple(TextPart(p.text, p.protected) for p in message.parts), message.protected)


def budget_from_wire(budget: orchestrator_pb2.Budget) -> Budget:
    names = ("max_prompt_tokens", "max_kv_tokens", "compress_above_tokens")
    values = {name: getattr(budget, name) for name in names if budget.HasField(name)}
    return Budget(strict=budget.strict, **values)


def sampling_from_wire(sampling: target_pb2.Sampling) -> Sampling:
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
    values = {name: getattr(sampling, name) for name in names if sampling.HasField(name)}
    if values.get("max_new_tokens") == 0:
        raise InvalidRequest("sampling.max_new_tokens", 0, ">= 1")
    return Sampling(
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        **values,
    )


def event_to_wire(event: Event) -> orchestrator_pb2.GenerateResponse:
    if isinstance(event, Decision):
        return orchestrator_pb2.GenerateResponse(decision=decision_to_wire(event))
    if isinstance(event, Delta):
        delta = orchestrator_pb2.TextDelta(text=event.text, token_ids=event.token_ids)
        return orchestrator_pb2.GenerateResponse(delta=delta)
    return orchestrator_pb2.GenerateResponse(usage=report_to_wire(event))


def decision_to_wire(decision: Decision) -> orchestrator_pb2.Decision:
    return orchestrator_pb2.Decision(
        route=wire.route_to_wire(decision.route),
        reason=_REASONS[decision.reason],
        detail=decision.detail,
        prompt_tokens=decision.prompt_tokens,
        kept_tokens=decision.kept_tokens,
        kv_tokens=decision.kv_tokens,
        protected_tokens=decision.protected_tokens,
        coverage=decision.coverage,
        cache=_CACHE[decision.cache],
        draft=None if decision.draft is None else wire.model_to_wire(decision.draft),
        target=wire.model_to_wire(decision.target),
        policy=None if decision.policy is None else wire.policy_to_wire(decision.policy),
        tokenize_ms=decision.tokenize_ms,
        cache_ms=decision.cache_ms,
        draft_ms=decision.draft_ms,
    )


def report_to_wire(report: PipelineReport) -> orchestrator_pb2.Usage:
    decision, usage = report.decision, report.usage
    return orchestrator_pb2.Usage(
        prompt_tokens=decision.prompt_tokens,
        kept_tokens=decision.kept_tokens,
        kv_tokens=usage.kv_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        finish_reason=_FINISH[usage.finish_reason],
        target_ttft_ms=usage.ttft_ms,
        ttft_ms=report.ttft_ms,
        total_ms=report.total_ms,
    )


def explained_to_wire(span: ExplainedSpan) -> orchestrator_pb2.ExplainedSpan:
    characters = span.characters
    return orchestrator_pb2.ExplainedSpan(
        tokens=plan_pb2.Span(start=span.tokens.start, end=span.tokens.end),
        characters=None if characters is None else plan_pb2.Span(start=characters.start, end=characters.end),
        kept=span.kept,
        protected=span.protected,
        importance=span.importance,
    )
