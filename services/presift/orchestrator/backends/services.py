"""Draft and target as replica pools see them: how to connect, what a replica reports, which replicas are compatible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

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
from presift.telemetry.metrics import count
from presift.v1 import draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc

if TYPE_CHECKING:  # these stubs' types exist for the type checker alone
    Drafts = Service[draft_pb2_grpc.DraftServiceAsyncStub, ModelInfo]
    Targets = Service[target_pb2_grpc.TargetServiceAsyncStub, TargetInfo]
    DraftPool = ReplicaPool[draft_pb2_grpc.DraftServiceAsyncStub, ModelInfo]
    TargetPool = ReplicaPool[target_pb2_grpc.TargetServiceAsyncStub, TargetInfo]

_DRAFT, _TARGET = "presift.v1.DraftService", "presift.v1.TargetService"
_INFO_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


def draft_pool(address: str, max_message_bytes: int, peer: Peer = PLAIN) -> DraftPool:
    """`address` is parsed by `parse_addresses`. Raises InvalidRequest."""
    where = parse_addresses("draft_address", address)
    return ReplicaPool(where, draft_service(max_message_bytes, _peer_at(where, peer)))


def target_pool(address: str, max_message_bytes: int, peer: Peer = PLAIN, model: str = "") -> TargetPool:
    """`address` is parsed by `parse_addresses`, `model` by `other_target`. Raises InvalidRequest."""
    where = parse_addresses("target_address", address)
    return ReplicaPool(where, target_service(max_message_bytes, _peer_at(where, peer), model))


def _peer_at(where: Addresses, peer: Peer) -> Peer:
    """The replicas of a DNS name are dialled by IP address; their certificates carry the name."""
    return peer.with_name(where.host) if isinstance(where, DnsName) else peer


def draft_service(max_message_bytes: int, peer: Peer = PLAIN) -> Drafts:
    """Another model takes over at once when no draft runs the one used so far; cache keys name the draft."""

    def connect(address: str, is_alone: bool) -> tuple[grpc.aio.Channel, Any]:
        channel = _channel(address, _DRAFT, ("Score",), max_message_bytes, peer, is_alone=is_alone)
        return channel, draft_pb2_grpc.DraftServiceStub(channel)

    return Service("draft", DraftUnavailable, connect, fetch_draft_info, model_differs, is_pinned=False)


def target_service(max_message_bytes: int, peer: Peer = PLAIN, model: str = "") -> Targets:
    """The model is pinned: all estimates and promises are about it. `model` is parsed by `other_target`."""

    def connect(address: str, is_alone: bool) -> tuple[grpc.aio.Channel, Any]:
        channel = _channel(address, _TARGET, ("Generate", "Prefill"), max_message_bytes, peer, is_alone=is_alone)
        return channel, target_pb2_grpc.TargetServiceStub(channel)

    return Service(
        "target",
        TargetUnavailable,
        connect,
        fetch_target_info,
        target_differs,
        is_pinned=True,
        can_replace=_has_same_ids,
        refusal=other_target(model),
    )


def _channel(
    address: str, service: str, methods: Sequence[str], max_message_bytes: int, peer: Peer, *, is_alone: bool
) -> grpc.aio.Channel:
    """With several replicas gRPC checks their health, and failed calls go to another one. gRPC retries these `methods`
    at a single replica."""
    retryable = [(service, method) for method in ("GetInfo", *(methods if is_alone else ()))]
    health = "" if is_alone else service
    return open_channel(address, retryable=retryable, max_message_bytes=max_message_bytes, health=health, peer=peer)


async def fetch_draft_info(stub: draft_pb2_grpc.DraftServiceAsyncStub) -> ReplicaInfo[ModelInfo]:
    """Raises DraftUnavailable or DeadlineExceeded."""
    try:
        reply = await stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest(), timeout=_INFO_TIMEOUT_S)
    except grpc.aio.AioRpcError as failure:
        raise draft_error(failure) from failure
    return ReplicaInfo("", codec.model_from_wire(reply.model))


async def fetch_target_info(stub: target_pb2_grpc.TargetServiceAsyncStub) -> ReplicaInfo[TargetInfo]:
    """Raises TargetUnavailable or DeadlineExceeded."""
    try:
        reply = await stub.GetInfo(target_pb2.TargetServiceGetInfoRequest(), timeout=_INFO_TIMEOUT_S)
    except grpc.aio.AioRpcError as failure:
        raise target_error(failure) from failure
    return ReplicaInfo(reply.replica, info_from_wire(reply))


def model_differs(used: ModelInfo, other: ModelInfo) -> str:
    """Why `other` is not the model that is used; empty if it is."""
    if used == other:
        return ""
    if (used.id, used.revision) != (other.id, other.revision):
        return f"it runs {other.id} at {other.short_revision}, not {used.id} at {used.short_revision}"
    if used.tokenizer_fingerprint != other.tokenizer_fingerprint:
        return "it has another tokenizer than those that are used"
    return f"its model has another shape: context {other.context_tokens}, not {used.context_tokens}"


def target_differs(used: TargetInfo, other: TargetInfo) -> str:
    """Why `other` cannot stand in for the targets that are used; empty if it can."""
    missing = used.supported - other.supported
    if missing:
        return f"it does not serve {', '.join(sorted(missing))}"
    if used.kv_page_tokens != other.kv_page_tokens:
        return f"its KV pages have {other.kv_page_tokens} tokens, not {used.kv_page_tokens}"
    return model_differs(used.model, other.model)


def other_target(model: str) -> Callable[[TargetInfo], str]:
    """Says why a target does not run `model`: ID or ID@REVISION, where REVISION may be cut; any if empty.

    Raises InvalidRequest.
    """
    model_id, at, revision = model.rpartition("@") if "@" in model else (model, "", "")
    if (model and not model_id) or (at and not revision):
        raise InvalidRequest("target_model", model, "ID or ID@REVISION")

    def refusal(info: TargetInfo) -> str:
        if not model or (info.model.id == model_id and info.model.revision.startswith(revision)):
            return ""
        return f"it runs {info.model.id} at {info.model.short_revision}, but target_model is {model}"

    return refusal


def _has_same_ids(used: TargetInfo, other: TargetInfo) -> bool:
    """Whether prompts that were tokenized for one can be read by the other: this orchestrator has one tokenizer."""
    return used.model.shares_vocabulary(other.model) and used.model.vocabulary_size == other.model.vocabulary_size


def draft_error(failure: grpc.aio.AioRpcError) -> PresiftError:
    """The presift error for a failed call to a draft."""
    return _translated(failure, DraftUnavailable, "draft")


def target_error(failure: grpc.aio.AioRpcError, delivered_tokens: int = 0) -> PresiftError:
    """The presift error for a failed call to a target; it carries the number of tokens that had arrived."""
    error = _translated(failure, TargetUnavailable, "target")
    if delivered_tokens:
        error.details = {**error.details, "delivered_tokens": str(delivered_tokens)}
    return error


def _translated(failure: grpc.aio.AioRpcError, unavailable: type[PresiftError], who: str) -> PresiftError:
    """The peer's own error if it is about the request; else by status: all but a missed deadline is unavailability."""
    error = error_of(failure)
    if isinstance(
        error, (Unauthenticated, PermissionDenied)
    ):  # the orchestrator's credentials were refused, not the caller's
        log.warning(
            "the %s refuses this orchestrator: %s; see service_token, peer_cert and its allowed_callers",
            who,
            error.message,
        )
        return unavailable(f"the {who} refused this orchestrator's credentials")
    if error is not None and not isinstance(error, InternalError | ShuttingDown):
        return error
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the {who} did not answer in time")
    return unavailable(f"the {who} failed: {failure.code().name}")


def count_pick(role: str, by: str) -> None:
    """Count a chosen replica: `by` is "prefix", "least_load" or "failover"."""
    count("presift.replica.picked", role=role, by=by)
    if by == "failover":
        count("presift.replica.failovers", role=role)
