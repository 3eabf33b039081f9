"""Draft and target over gRPC: the ports of `ports.py`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from presift.core.errors import (
    DeadlineExceeded,
    DraftUnavailable,
    InternalError,
    InvalidRequest,
    PermissionDenied,
    PresiftError,
    ShuttingDown,
    TargetUnavailable,
    Unauthenticated,
)
from presift.core.kv_plan import KvPlan
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.policies import Policy
from presift.core.spans import Span
from presift.orchestrator.ports import MaskRejected, Score, TargetInfo, Usage
from presift.orchestrator.request import Sampling
from presift.orchestrator.target_wire import info_from_wire, sampling_to_wire, usage_from_wire
from presift.rpc import wire
from presift.rpc.channel import open_channel
from presift.rpc.peers import PLAIN, Peer
from presift.rpc.status import error_of
from presift.v1 import draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc

log = logging.getLogger(__name__)

_INFO_TIMEOUT_S = 5.0


class RemoteDraft:
    """A draft service at `address`."""

    def __init__(self, address: str, max_message_bytes: int, peer: Peer = PLAIN) -> None:
        retryable = [("presift.v1.DraftService", "Score"), ("presift.v1.DraftService", "GetInfo")]
        self._channel = open_channel(address, retryable=retryable, max_message_bytes=max_message_bytes, peer=peer)
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

    def __init__(self, address: str, max_message_bytes: int, peer: Peer = PLAIN) -> None:
        retryable = [("presift.v1.TargetService", method) for method in ("Generate", "Prefill", "GetInfo")]
        self._channel = open_channel(address, retryable=retryable, max_message_bytes=max_message_bytes, peer=peer)
        self._stub = target_pb2_grpc.TargetServiceStub(self._channel)

    async def info(self) -> TargetInfo:
        try:
            reply = await self._stub.GetInfo(target_pb2.TargetServiceGetInfoRequest(), timeout=_INFO_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            raise _translated(failure, TargetUnavailable, "target") from failure
        return info_from_wire(reply)

    async def generate(
        self,
        token_ids: NDArray[np.uint32],
        sampling: Sampling,
        cache_salt: str,
        timeout_s: float | None,
        kv_plan: KvPlan | None = None,
    ) -> AsyncGenerator[tuple[int, ...] | Usage, None]:
        request = target_pb2.TargetServiceGenerateRequest(
            token_ids=token_ids.tolist(),
            sampling=sampling_to_wire(sampling),
            cache_salt=cache_salt,
            kv_plan=None if kv_plan is None else wire.kv_plan_to_wire(kv_plan),
        )
        call = self._stub.Generate(request, timeout=timeout_s)
        has_ended = False
        try:
            async for event in call:
                has_ended = event.HasField("usage")
                yield usage_from_wire(event.usage) if has_ended else tuple(event.delta.token_ids)
        except grpc.aio.AioRpcError as failure:
            raise _translated(failure, TargetUnavailable, "target") from failure
        finally:
            call.cancel()
        if not has_ended:
            raise TargetUnavailable("the target's stream ended early")

    async def prefill(self, token_ids: NDArray[np.uint32], cache_salt: str, timeout_s: float | None) -> None:
        request = target_pb2.PrefillRequest(token_ids=token_ids.tolist(), cache_salt=cache_salt)
        try:
            await self._stub.Prefill(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as failure:
            raise _translated(failure, TargetUnavailable, "target") from failure

    async def aclose(self) -> None:
        await self._channel.close()


def _score(reply: draft_pb2.ScoreResponse) -> Score:
    try:
        prompt = CompressedPrompt(
            mask=wire.token_mask_from_wire(reply.token_mask),
            lookahead_token_ids=tuple(reply.lookahead_token_ids),
            coverage=reply.coverage if reply.HasField("coverage") else None,
            draft=wire.model_from_wire(reply.model),
            kv_capacity=reply.kv_capacity if reply.HasField("kv_capacity") else None,
        )
    except InvalidRequest as error:  # the draft's fault, not the caller's
        raise MaskRejected(f"the draft's answer: {error.message}") from error
    tokens = prompt.mask.prompt_tokens
    importance, mass = _values("importance", reply.importance, tokens), _values("mass", reply.mass, tokens)
    return Score(prompt, importance, mass, reply.timings.queue_ms)


def _values(name: str, told: Sequence[float], prompt_tokens: int) -> NDArray[np.float32] | None:
    """float32[prompt_tokens], None where nothing was told. Raises MaskRejected."""
    if told and len(told) != prompt_tokens:
        raise MaskRejected(f"{name} of {len(told)} tokens for a prompt of {prompt_tokens}")
    return np.fromiter(told, dtype=np.float32) if told else None


def _translated(failure: grpc.aio.AioRpcError, unavailable: type[PresiftError], who: str) -> Any:
    """The peer's own error where it sent one that is of the request; else by status: everything that is no deadline is
    unavailability."""
    error = error_of(failure)
    if isinstance(error, (Unauthenticated, PermissionDenied)):  # it is us whom it does not know, not our caller
        log.warning("the %s refuses us: %s; see service_token, peer_cert and its allowed_callers", who, error.message)
        return unavailable(f"the {who} does not let this orchestrator in")
    if error is not None and not isinstance(error, InternalError | ShuttingDown):
        return error
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the {who} did not answer in time")
    return unavailable(f"the {who} failed: {failure.code().name}")
