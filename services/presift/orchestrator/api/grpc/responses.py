"""Protobuf messages from the pipeline's events, explanations and status."""

from __future__ import annotations

from presift.orchestrator.api.grpc.enums import CACHE_OUTCOMES, KV_LOOKAHEADS, REASONS
from presift.orchestrator.api.grpc.forecasts import routes_to_wire
from presift.orchestrator.config.policy_file import PolicyFile
from presift.orchestrator.pipeline.events import Delta, Event, Report
from presift.orchestrator.planning.explain import ExplainedSpan, Explanation
from presift.orchestrator.routing.decision import Decision
from presift.orchestrator.routing.quality_gate import Quality
from presift.rpc import answer_codec, codec
from presift.rpc.pool.replica import ReplicaStatus
from presift.v1 import orchestrator_pb2, plan_pb2


def event_to_wire(event: Event) -> orchestrator_pb2.GenerateResponse:
    if isinstance(event, Decision):
        return orchestrator_pb2.GenerateResponse(decision=decision_to_wire(event))
    if isinstance(event, Delta):
        return orchestrator_pb2.GenerateResponse(delta=_delta_to_wire(event))
    return orchestrator_pb2.GenerateResponse(usage=report_to_wire(event))


def _delta_to_wire(delta: Delta) -> orchestrator_pb2.TextDelta:
    return orchestrator_pb2.TextDelta(
        text=delta.text,
        token_ids=delta.token_ids,
        choice=delta.choice,
        reasoning=delta.reasoning,
        tool_calls=answer_codec.tool_calls_to_wire(delta.tool_calls),
        logprobs=answer_codec.logprobs_to_wire(delta.logprobs),
    )


def decision_to_wire(decision: Decision) -> orchestrator_pb2.Decision:
    return orchestrator_pb2.Decision(
        route=codec.route_to_wire(decision.route),
        reason=REASONS.to_wire(decision.reason),
        detail=decision.detail,
        prompt_tokens=decision.prompt_tokens,
        kept_tokens=decision.kept_tokens,
        kv_tokens=decision.kv_tokens,
        protected_tokens=decision.protected_tokens,
        coverage=decision.coverage,
        cache=CACHE_OUTCOMES.to_wire(decision.cache),
        draft=None if decision.draft is None else codec.model_to_wire(decision.draft),
        target=codec.model_to_wire(decision.target),
        policy=None if decision.policy is None else codec.policy_to_wire(decision.policy),
        tokenize_ms=decision.tokenize_ms,
        cache_ms=decision.cache_ms,
        draft_ms=decision.draft_ms,
        prefill_ms=decision.prefill_ms,
        keep_full_prefix=decision.keep_full_prefix,
        continued=decision.continued,
        predicted_ttft_ms=None if decision.forecast is None else decision.forecast.ttft_ms,
        cross_vocabulary=decision.cross_vocabulary,
        draft_cached_tokens=decision.draft_cached_tokens,
        lookahead=None if decision.lookahead is None else KV_LOOKAHEADS.to_wire(decision.lookahead),
    )


def report_to_wire(report: Report) -> orchestrator_pb2.Usage:
    decision, usage = report.decision, report.usage
    return orchestrator_pb2.Usage(
        prompt_tokens=decision.prompt_tokens,
        kept_tokens=decision.kept_tokens,
        target_ttft_ms=usage.ttft_ms,
        ttft_ms=report.ttft_ms,
        total_ms=report.total_ms,
        choice=report.choice,
        warnings=report.warnings,
        migrated=usage.migrated,
        **answer_codec.finished_to_wire(usage),
    )


def explanation_to_wire(explanation: Explanation) -> orchestrator_pb2.ExplainResponse:
    kept_kv = explanation.kept_kv
    return orchestrator_pb2.ExplainResponse(
        decision=decision_to_wire(explanation.decision),
        spans=[_span_to_wire(span) for span in explanation.spans],
        kv_mask=None if kept_kv is None else codec.kv_mask_to_wire(kept_kv.mask),
        target_coverage=None if kept_kv is None else kept_kv.coverage,
        text=explanation.text,
        routes=routes_to_wire(explanation.routes, explanation.decision.route),
    )


def policy_file_to_wire(file: PolicyFile | None) -> orchestrator_pb2.PolicyFile | None:
    """The digest and load time of the file; not the tenants that it names."""
    return None if file is None else orchestrator_pb2.PolicyFile(digest=file.digest, loaded_at=file.loaded_at)


def quality_to_wire(quality: Quality) -> orchestrator_pb2.RouteQuality:
    return orchestrator_pb2.RouteQuality(
        route=codec.route_to_wire(quality.route),
        min_tokens=quality.band.least_tokens,
        max_tokens=quality.band.most_tokens,
        samples=quality.samples,
        mean_overlap=quality.overlap,
        exact_share=quality.exact_share,
        mean_first_divergence=quality.first_divergence,
        switched_off=quality.is_off,
        since=quality.since,
        mean_agreement=quality.agreement,
        mean_fact_share=quality.fact_share,
    )


def replica_to_wire(status: ReplicaStatus) -> orchestrator_pb2.Replica:
    return orchestrator_pb2.Replica(
        address=status.address,
        role=status.role,
        healthy=status.is_healthy,
        breaker=status.breaker.value,
        in_flight=status.in_flight,
        unused=status.unused,
        name=status.name,
    )


def _span_to_wire(span: ExplainedSpan) -> orchestrator_pb2.ExplainedSpan:
    characters = span.characters
    return orchestrator_pb2.ExplainedSpan(
        tokens=plan_pb2.Span(start=span.tokens.start, end=span.tokens.end),
        characters=None if characters is None else plan_pb2.Span(start=characters.start, end=characters.end),
        kept=span.kept,
        protected=span.protected,
        importance=span.importance,
        kept_share=span.kept_share,
    )
