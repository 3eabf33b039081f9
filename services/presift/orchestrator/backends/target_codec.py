"""The target's messages: requests, usage and info."""

from __future__ import annotations

from presift.core.errors import InvalidRequest, TargetUnavailable
from presift.core.generation import EngineLoad
from presift.core.limits import MAX_KV_MASK_BYTES
from presift.core.masks import KvMask
from presift.core.plan import Route
from presift.orchestrator.backends.measured import milliseconds, share, tokens
from presift.orchestrator.domain.ports import TargetInfo, TargetRequest, Usage
from presift.rpc import answer_codec, codec
from presift.rpc.large_input import in_thread_if_large
from presift.v1 import target_pb2


async def request_to_wire(request: TargetRequest) -> target_pb2.TargetServiceGenerateRequest:
    """The message. A million tokens take 60 ms, in a thread."""
    mask = None if request.kv_plan is None else request.kv_plan.kv_mask
    size = request.token_ids.nbytes + (0 if mask is None else mask.kept.nbytes)
    return await in_thread_if_large(size, lambda: generate_to_wire(request))


def generate_to_wire(request: TargetRequest) -> target_pb2.TargetServiceGenerateRequest:
    """The same in this thread."""
    plan, wanted = request.kv_plan, request.answer_format
    return target_pb2.TargetServiceGenerateRequest(
        token_ids=request.token_ids.tolist(),
        sampling=answer_codec.sampling_to_wire(request.sampling),
        cache_salt=request.salt,
        kv_plan=None if plan is None else codec.kv_plan_to_wire(plan),
        format=None if wanted is None else answer_codec.format_to_wire(wanted),
    )


def info_from_wire(reply: target_pb2.TargetServiceGetInfoResponse) -> TargetInfo:
    """Unknown routes are left out: a newer target may serve more."""
    return TargetInfo(
        model=codec.model_from_wire(reply.model),
        supported=codec.known_routes(reply.supported_routes),
        unsupported=_reasons(reply),
        kv_page_tokens=reply.kv_page_tokens or 1,
        kv_pool_tokens=reply.kv_pool_tokens,
        replica=reply.replica,
        tool_call_parser=reply.tool_call_parser,
        reasoning_parser=reply.reasoning_parser,
        grammars=reply.grammars,
        engine=reply.engine,
    )


def _reasons(reply: target_pb2.TargetServiceGetInfoResponse) -> dict[Route, str]:
    return {route: each.reason for each in reply.unsupported_routes for route in codec.known_routes([each.route])}


def usage_from_wire(usage: target_pb2.TargetUsage) -> Usage:
    """An unknown finish reason becomes STOP. Numbers out of range are dropped, see `measured`. Raises TargetUnavailable
    for an invalid KV mask, and InvalidRequest for one that is too large. A mask takes long, and so do the log
    probabilities of a long prompt: use a thread for them."""
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        kv_tokens=usage.kv_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        finish_reason=answer_codec.finish_from_wire(usage.finish_reason),
        ttft_ms=milliseconds(usage.ttft_ms),
        reused_entry=usage.reused_entry,
        score_ms=milliseconds(usage.score_ms),
        publish_ms=milliseconds(usage.publish_ms),
        coverage=share(usage.coverage) if usage.HasField("coverage") else None,
        kv_mask=_kv_mask(usage) if usage.HasField("kv_mask") else None,
        replica=usage.replica,
        load=_load(usage.load) if usage.HasField("load") else None,
        reasoning_tokens=usage.reasoning_tokens,
        prompt_logprobs=answer_codec.logprobs_from_wire(usage.prompt_logprobs),
        renewals=usage.renewals,
        renewals_skipped=usage.renewals_skipped,
        accepted_tokens=usage.accepted_tokens,
        kv_tokens_peak=usage.kv_tokens_peak,
        kv_tokens_mean=tokens(usage.kv_tokens_mean, usage.kv_tokens_peak),
        coverage_min=share(usage.coverage_min) if usage.HasField("coverage_min") else None,
    )


def _load(load: target_pb2.TargetLoad) -> EngineLoad:
    return EngineLoad(load.running, load.waiting, load.free_kv_tokens)


def _kv_mask(usage: target_pb2.TargetUsage) -> KvMask:
    size = len(usage.kv_mask.kept)
    if size > MAX_KV_MASK_BYTES:  # as large as a prompt times its layers and heads, and a caller asked for it
        raise InvalidRequest("include_kv_mask", f"a mask of {size} bytes", f"at most {MAX_KV_MASK_BYTES} bytes")
    try:
        return codec.kv_mask_from_wire(usage.kv_mask)
    except InvalidRequest as error:  # the target's fault, not the caller's
        raise TargetUnavailable(f"the target's answer: {error.message}") from error
