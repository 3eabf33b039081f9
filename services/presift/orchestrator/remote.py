"""Draft and target over gRPC: the ports of `ports.py`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from presift.core.errors import (
    DeadlineExceeded,
    DraftUnavailable,
    InternalError,
    InvalidRequest,
    PresiftError,
    TargetUnavailable,
)
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.policies import Policy
from presift.core.spans import Span
from presift.orchestrator.ports import FinishReason, MaskRejected, Score, TargetInfo, Usage
from presift.orchestrator.request import Sampling
from presift.rpc import wire
from presift.rpc.channel import open_channel
from presift.rpc.status import error_of
from presift.v1 import draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc

_FINISH = {
    target_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    target_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_INFO_TIMEOUT_S = 5.0


class RemoteDraft:
    """A draft service at `address`."""

    def __init__(self, address: str, max_message_bytes: int) -> None:
        retryable = [("presift.v1.DraftService", "Score"), ("presift.v1.DraftService", "GetInfo")]
        self._channel = open_channel(address, retryable=retryable, max_message_bytes=max_message_bytes)
        self._stub = draft_pb2_grpc.DraftServiceStub(self._channel)

    async def info(self) -> ModelInfo:
        try:
            reply = await self._stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest(), timeout=_INFO_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            raise _translated(failure, DraftUnavailable, "draft") from failure
        return wire.model_from_wire(reply.model)

    async def score(
        self,
        token_ids: NDArray[np.uint32],
        policy: Policy,
        protected: tuple[Span, ...],
        *,
        include_importance: bool,
        timeout_s: float,
    ) -> Score:
        request = draft_pb2.ScoreRequest(
            token_ids=token_ids.tolist(),
            policy=wire.policy_to_wire(policy),
            protected_spans=wire.spans_to_wire(protected),
            include_importance=include_importance,
        )
        try:
            return _score(await self._stub.Score(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as failure:
            raise _translated(failure, DraftUnavailable, "draft") from failure

    async def aclose(self) -> None:
        await self._channel.close()


class RemoteTarget:
    """A target service at `address`."""

    def __init__(self, address: str, max_message_bytes: int) -> None:
        retryable = [("presift.v1.TargetService", "Generate"), ("presift.v1.TargetService", "GetInfo")]
        self._channel = open_channel(address, retryable=retryable, max_message_bytes=max_message_bytes)
        self._stub = target_pb2_grpc.TargetServiceStub(self._channel)

    async def info(self) -> TargetInfo:
        try:
            reply = await self._stub.GetInfo(target_pb2.TargetServiceGetInfoRequest(), timeout=_INFO_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            raise _translated(failure, TargetUnavailable, "target") from failure
        return TargetInfo(wire.model_from_wire(reply.model), wire.known_routes(reply.supported_routes))

    async def generate(
        self, token_ids: NDArray[np.uint32], sampling: Sampling, cache_salt: str, timeout_s: float | None
    ) -> AsyncGenerator[tuple[int, ...] | Usage, None]:
        request = target_pb2.TargetServiceGenerateRequest(
            token_ids=token_ids.tolist(), sampling=sampling_to_wire(sampling), cache_salt=cache_salt
        )
        call = self._stub.Generate(request, timeout=timeout_s)
        has_ended = False
        try:
            async for event in call:
                has_ended = event.HasField("usage")
                yield _usage(event.usage) if has_ended else tuple(event.delta.token_ids)
        except grpc.aio.AioRpcError as failure:
            raise _translated(failure, TargetUnavailable, "target") from failure
        finally:
            call.cancel()
        if not has_ended:
            raise TargetUnavailable("the target's stream ended early")

    async def aclose(self) -> None:
        await self._channel.close()


def sampling_to_wire(sampling: Sampling) -> target_pb2.Sampling:
    """Fields that the caller left out stay out."""
    return target_pb2.Sampling(
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
    )


def _score(reply: draft_pb2.ScoreResponse) -> Score:
    try:
        prompt = CompressedPrompt(
            mask=wire.token_mask_from_wire(reply.token_mask),
            lookahead_token_ids=tuple(reply.lookahead_token_ids),
            coverage=reply.coverage if reply.HasField("coverage") else None,
            draft=wire.model_from_wire(reply.model),
        )
    except InvalidRequest as error:  # the draft's fault, not the caller's
        raise MaskRejected(f"the draft's answer: {error.message}") from error
    importance = np.fromiter(reply.importance, dtype=np.float32) if reply.importance else None
    if importance is not None and importance.size != prompt.mask.prompt_tokens:
        raise MaskRejected(f"importance of {importance.size} tokens for a prompt of {prompt.mask.prompt_tokens}")
    return Score(prompt, importance)


def _usage(usage: target_pb2.TargetUsage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        kv_tokens=usage.kv_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        finish_reason=_FINISH.get(usage.finish_reason, FinishReason.STOP),
        ttft_ms=usage.ttft_ms,
    )


def _translated(failure: grpc.aio.AioRpcError, unavailable: type[PresiftError], who: str) -> Any:
    """The peer's own error where it sent one; else by status: everything that is no deadline is unavailability."""
    error = error_of(failure)
    if error is not None and not isinstance(error, InternalError):
        return error
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the {who} did not answer in time")
    return unavailable(f"the {who} failed: {failure.code().name}")
