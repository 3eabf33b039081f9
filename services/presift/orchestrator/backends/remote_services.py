"""Draft and target as fleets see them: how to reach one, what it says of itself, which of them go together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc

from presift.core.errors import (
    DeadlineExceeded,
    DraftUnavailable,
    InternalError,
    PermissionDenied,
    PresiftError,
    ShuttingDown,
    TargetUnavailable,
    Unauthenticated,
)
from presift.core.plan import ModelInfo
from presift.orchestrator.backends.target_codec import info_from_wire
from presift.orchestrator.domain.ports import TargetInfo
from presift.rpc import codec
from presift.rpc.client.channel import open_channel
from presift.rpc.pool.pool import ReplicaPool
from presift.rpc.pool.replica import ReplicaInfo
from presift.rpc.pool.resolver import Addresses, DnsName, parse_addresses
from presift.rpc.pool.service import Service
from presift.rpc.security.peer import PLAIN, Peer
from presift.rpc.status import error_of
from presift.v1 import draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc

if TYPE_CHECKING:  # these stubs' types exist for the type checker alone
    Drafts = Service[draft_pb2_grpc.DraftServiceAsyncStub, ModelInfo]
    Targets = Service[target_pb2_grpc.TargetServiceAsyncStub, TargetInfo]
    DraftFleet = ReplicaPool[draft_pb2_grpc.DraftServiceAsyncStub, ModelInfo]
    TargetFleet = ReplicaPool[target_pb2_grpc.TargetServiceAsyncStub, TargetInfo]

_DRAFT, _TARGET = "presift.v1.DraftService", "presift.v1.TargetService"
_INFO_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


def drafts_at(address: str, max_message_bytes: int, peer: Peer = PLAIN) -> DraftFleet:
    """`address` as `where_of` reads it. Raises InvalidRequest where it cannot."""
    where = parse_addresses("draft_address", address)
    return ReplicaPool(where, draft_service(max_message_bytes, _peer_at(where, peer)))


def targets_at(address: str, max_message_bytes: int, peer: Peer = PLAIN) -> TargetFleet:
    """`address` as `where_of` reads it. Raises InvalidRequest where it cannot."""
    where = parse_addresses("target_address", address)
    return ReplicaPool(where, target_service(max_message_bytes, _peer_at(where, peer)))


def _peer_at(where: Addresses, peer: Peer) -> Peer:
    """A name's replicas are dialled by address, which no certificate of theirs has."""
    return peer.called(where.host) if isinstance(where, DnsName) else peer


def draft_service(max_message_bytes: int, peer: Peer = PLAIN) -> Drafts:
    """Another model takes over once no draft is left of the first: what it says is held against the cache's keys."""

    def connect(address: str, is_alone: bool) -> tuple[grpc.aio.Channel, Any]:
        channel = _channel(address, _DRAFT, ("Score",), max_message_bytes, peer, is_alone=is_alone)
        return channel, draft_pb2_grpc.DraftServiceStub(channel)

    return Service("draft", DraftUnavailable, connect, ask_draft, model_differs, is_pinned=False)


def target_service(max_message_bytes: int, peer: Peer = PLAIN) -> Targets:
    """The first target's model stays for good: all that was learnt and promised is of it."""

    def connect(address: str, is_alone: bool) -> tuple[grpc.aio.Channel, Any]:
        channel = _channel(address, _TARGET, ("Generate", "Prefill"), max_message_bytes, peer, is_alone=is_alone)
        return channel, target_pb2_grpc.TargetServiceStub(channel)

    return Service("target", TargetUnavailable, connect, ask_target, target_differs, is_pinned=True)


def _channel(
    address: str, service: str, methods: Sequence[str], max_message_bytes: int, peer: Peer, *, is_alone: bool
) -> grpc.aio.Channel:
    """Where there are others, gRPC says which of them serve, and what fails goes on to another; where there are none,
    it tries `methods` again at the same."""
    retryable = [(service, method) for method in ("GetInfo", *(methods if is_alone else ()))]
    health = "" if is_alone else service
    return open_channel(address, retryable=retryable, max_message_bytes=max_message_bytes, health=health, peer=peer)


async def ask_draft(stub: draft_pb2_grpc.DraftServiceAsyncStub) -> ReplicaInfo[ModelInfo]:
    """Raises DraftUnavailable or DeadlineExceeded."""
    try:
        reply = await stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest(), timeout=_INFO_TIMEOUT_S)
    except grpc.aio.AioRpcError as failure:
        raise draft_error(failure) from failure
    return ReplicaInfo("", codec.model_from_wire(reply.model))


async def ask_target(stub: target_pb2_grpc.TargetServiceAsyncStub) -> ReplicaInfo[TargetInfo]:
    """Raises TargetUnavailable or DeadlineExceeded."""
    try:
        reply = await stub.GetInfo(target_pb2.TargetServiceGetInfoRequest(), timeout=_INFO_TIMEOUT_S)
    except grpc.aio.AioRpcError as failure:
        raise target_error(failure) from failure
    return ReplicaInfo(reply.replica, info_from_wire(reply))


def model_differs(first: ModelInfo, other: ModelInfo) -> str:
    """Why `other` is not the same model; empty where it is."""
    if first == other:
        return ""
    if (first.id, first.revision) != (other.id, other.revision):
        return f"it runs {other.id} at {other.revision[:12]}, the first {first.id} at {first.revision[:12]}"
    if first.tokenizer_fingerprint != other.tokenizer_fingerprint:
        return "it has another tokenizer than the first"
    return f"its model has another shape than the first: context {other.context_tokens}, not {first.context_tokens}"


def target_differs(first: TargetInfo, other: TargetInfo) -> str:
    """Why `other` cannot answer what `first` would; empty where it can."""
    missing = first.supported - other.supported
    if missing:
        return f"it does not serve {', '.join(sorted(missing))}"
    if first.kv_page_tokens != other.kv_page_tokens:
        return f"its KV pages have {other.kv_page_tokens} tokens, the first's {first.kv_page_tokens}"
    return model_differs(first.model, other.model)


def draft_error(failure: grpc.aio.AioRpcError) -> PresiftError:
    """What a draft's failure is here."""
    return _translated(failure, DraftUnavailable, "draft")


def target_error(failure: grpc.aio.AioRpcError, delivered_tokens: int = 0) -> PresiftError:
    """What a target's failure is here; says how many tokens had come, if any."""
    error = _translated(failure, TargetUnavailable, "target")
    if delivered_tokens:
        error.details = {**error.details, "delivered_tokens": str(delivered_tokens)}
    return error


def _translated(failure: grpc.aio.AioRpcError, unavailable: type[PresiftError], who: str) -> PresiftError:
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
