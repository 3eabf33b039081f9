"""Converts presift's errors to gRPC status codes, reasons and details, and back."""

from __future__ import annotations

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from presift.core import errors
from presift.v1 import errors_pb2

DOMAIN = "presift.dev"
DETAILS_KEY = "grpc-status-details-bin"
_TYPE_PREFIX = "type.googleapis.com/google.rpc."
# Errors are sent as metadata, which HTTP/2 peers limit to a few kilobytes. A longer error would be lost.
MAX_MESSAGE_CHARACTERS = 1024
MAX_DETAIL_CHARACTERS = 256

# Most derived first: the first matching row counts.
TABLE: tuple[tuple[type[errors.PresiftError], grpc.StatusCode, str], ...] = (
    (errors.PromptTooLong, grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    (errors.BudgetExceeded, grpc.StatusCode.FAILED_PRECONDITION, "BUDGET_EXCEEDED"),
    (errors.RouteUnsupported, grpc.StatusCode.FAILED_PRECONDITION, "ROUTE_UNSUPPORTED"),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (errors.DraftUnavailable, grpc.StatusCode.UNAVAILABLE, "DRAFT_UNAVAILABLE"),
    (errors.TargetUnavailable, grpc.StatusCode.UNAVAILABLE, "TARGET_UNAVAILABLE"),
    (errors.ShuttingDown, grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"),
    (errors.VocabularyMismatch, grpc.StatusCode.FAILED_PRECONDITION, "VOCABULARY_MISMATCH"),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (errors.InternalError, grpc.StatusCode.INTERNAL, "INTERNAL"),
    (errors.PresiftError, grpc.StatusCode.INTERNAL, "INTERNAL"),
)


def code_and_reason(error: errors.PresiftError) -> tuple[grpc.StatusCode, str]:
    """The row of `error` in TABLE."""
    return next((code, reason) for kind, code, reason in TABLE if isinstance(error, kind))


def details_of(error: errors.PresiftError) -> bytes:
    """The serialized google.rpc.Status of `error`, for the trailer DETAILS_KEY."""
    code, reason = code_and_reason(error)
    status = errors_pb2.Status(code=code.value[0], message=message_of(error))
    info = errors_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=details_for(error))
    status.details.add(type_url=_TYPE_PREFIX + "ErrorInfo", value=info.SerializeToString())
    if isinstance(error, errors.Overloaded) and error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        retry = errors_pb2.RetryInfo(retry_delay=delay)
        status.details.add(type_url=_TYPE_PREFIX + "RetryInfo", value=retry.SerializeToString())
    return status.SerializeToString()


def details_for(error: errors.PresiftError) -> dict[str, str]:
    """The error's details, shortened for sending."""
    return {name: _shortened(value, MAX_DETAIL_CHARACTERS) for name, value in error.details.items()}


def message_of(error: errors.PresiftError) -> str:
    """The error's message, shortened for sending."""
    return _shortened(error.message, MAX_MESSAGE_CHARACTERS)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def error_of(failure: grpc.RpcError) -> errors.PresiftError | None:
    """The presift error in a peer's failure; None if it has none (a failure of a proxy or of gRPC itself)."""
    trailers = failure.trailing_metadata() if isinstance(failure, grpc.aio.AioRpcError) else None
    raw = next((value for key, value in trailers or () if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return None
    try:
        status = errors_pb2.Status.FromString(raw)
        return _rebuild(status)
    except DecodeError:
        return None


def _rebuild(status: errors_pb2.Status) -> errors.PresiftError | None:
    info, retry_after_s = errors_pb2.ErrorInfo(), None
    for detail in status.details:
        if detail.type_url == _TYPE_PREFIX + "ErrorInfo":
            info.ParseFromString(detail.value)
        elif detail.type_url == _TYPE_PREFIX + "RetryInfo":
            retry_after_s = errors_pb2.RetryInfo.FromString(detail.value).retry_delay.ToMilliseconds() / 1000
    if info.domain != DOMAIN:
        return None
    kind = next((kind for kind, _, reason in TABLE if reason == info.reason), errors.InternalError)
    return _construct(kind, status.message, dict(info.metadata), retry_after_s)


def _construct(
    kind: type[errors.PresiftError], message: str, details: dict[str, str], retry_after_s: float | None
) -> errors.PresiftError:
    field, value, limit = (details.get(name, "") for name in ("field", "value", "limit"))
    if kind is errors.Overloaded:
        return errors.Overloaded(field, value, limit, retry_after_s, message)
    if issubclass(kind, errors.FieldError):
        return kind(field, value, limit, message)
    error = kind(message)
    error.details = details  # not as keyword arguments: the peer chose these names
    return error
