"""The client's errors, and the table that maps gRPC statuses to them.

PresiftError
├── InvalidRequest          INVALID_ARGUMENT: `field`, `value`, `limit` say what is wrong; or a message too large
│   └── PromptTooLong
├── BudgetExceeded          FAILED_PRECONDITION, only if strict
├── RouteUnsupported        FAILED_PRECONDITION
├── Overloaded              RESOURCE_EXHAUSTED: retry after `retry_after_s`
├── Unavailable             UNAVAILABLE: the service is unreachable, or failed during the answer
├── DeadlineExceeded        DEADLINE_EXCEEDED
├── Cancelled               CANCELLED
├── Unauthenticated         UNAUTHENTICATED: missing or invalid key, token or certificate
├── PermissionDenied        PERMISSION_DENIED: the caller is known but not allowed to do this
└── InternalError           anything else
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from presift.v1 import errors_pb2

_GOOGLE = "type.googleapis.com/google.rpc."


@dataclass(frozen=True, slots=True)
class Details:
    """Details of an error; see PresiftError. `retry_after_s` is None if the service gives no time."""

    reason: str = ""
    field: str = ""
    value: str = ""
    limit: str = ""
    retry_after_s: float | None = None
    delivered_tokens: int = 0


class PresiftError(Exception):
    """Base class of all errors that a call raises. `code` is the gRPC status; `field`, `value`, `limit` may be empty.

    `delivered_tokens` is the number of tokens that were received before the error; 0 means that a
    retry repeats no text.
    """

    def __init__(self, message: str, code: grpc.StatusCode, details: Details) -> None:
        super().__init__(message)
        self.code = code
        self.reason = details.reason
        self.field = details.field
        self.value = details.value
        self.limit = details.limit
        self.retry_after_s = details.retry_after_s
        self.delivered_tokens = details.delivered_tokens


class InvalidRequest(PresiftError):
    """A field's value is outside its limits."""


class PromptTooLong(InvalidRequest):
    """Prompt plus answer exceed the model's context."""


class BudgetExceeded(PresiftError):
    """The budget is strict and cannot be met."""


class RouteUnsupported(PresiftError):
    """The service does not support the route; `limit` lists the supported ones."""


class Overloaded(PresiftError):
    """A queue is full, or a limit is reached; retry after `retry_after_s` seconds."""


class Unavailable(PresiftError):
    """The service is unreachable, or failed during the answer."""


class DeadlineExceeded(PresiftError):
    """The deadline passed."""


class Cancelled(PresiftError):
    """The call was cancelled."""


class Unauthenticated(PresiftError):
    """The key, token or certificate is missing or invalid."""


class PermissionDenied(PresiftError):
    """The caller is known but not allowed to do this."""


class InternalError(PresiftError):
    """A defect of the service."""


# gRPC's own error for a message over the size limit; it carries no reason.
_TOO_LARGE = "message larger than max"

_BY_REASON: dict[str, type[PresiftError]] = {
    "PROMPT_TOO_LONG": PromptTooLong,
    "BUDGET_EXCEEDED": BudgetExceeded,
    "ROUTE_UNSUPPORTED": RouteUnsupported,
}
_BY_CODE: dict[grpc.StatusCode, type[PresiftError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}


def invalid_request(field: str, value: str, limit: str) -> InvalidRequest:
    """The error that the service would return, for a value that cannot be encoded."""
    details = Details("INVALID_REQUEST", field, value, limit)
    return InvalidRequest(f"{field} is {value}; it must be {limit}", grpc.StatusCode.INVALID_ARGUMENT, details)


def error_of(failure: grpc.RpcError, received_tokens: int = 0) -> PresiftError:
    """The typed error of a failed call (of grpc or grpc.aio) that had received this many tokens."""
    code = failure.code()
    details = _details(failure)
    # A service that died does not report what it had sent.
    details = replace(details, delivered_tokens=max(details.delivered_tokens, received_tokens))
    kind = _BY_REASON.get(details.reason) or _BY_CODE.get(code, InternalError)
    text = failure.details() or code.name
    if kind is Unavailable and not details.reason:  # gRPC's own message, such as "Socket closed"
        text = f"the service is unreachable, or the connection was lost during the answer: {text}"
    if kind is Overloaded and _TOO_LARGE in text:
        kind = InvalidRequest  # a retry would not help
    return kind(text, code, details)


def _details(failure: grpc.RpcError) -> Details:
    trailers: Any = failure.trailing_metadata() or ()
    raw = next((value for key, value in trailers if key == "grpc-status-details-bin"), None)
    try:
        return _parse(errors_pb2.Status.FromString(raw)) if isinstance(raw, bytes) else Details()
    except DecodeError:
        return Details()


def _parse(status: errors_pb2.Status) -> Details:
    info, retry_after_s = errors_pb2.ErrorInfo(), None
    for detail in status.details:
        if detail.type_url == _GOOGLE + "ErrorInfo":
            info.ParseFromString(detail.value)
        elif detail.type_url == _GOOGLE + "RetryInfo":
            retry_after_s = errors_pb2.RetryInfo.FromString(detail.value).retry_delay.ToMilliseconds() / 1000
    known = info.metadata
    delivered = known.get("delivered_tokens", "0")
    return Details(
        info.reason,
        known.get("field", ""),
        known.get("value", ""),
        known.get("limit", ""),
        retry_after_s,
        int(delivered) if delivered.isdecimal() and len(delivered) < 10 else 0,
    )
