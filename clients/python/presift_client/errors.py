"""The client's errors and the one table from gRPC statuses to them.

PresiftError
├── InvalidRequest          INVALID_ARGUMENT: `field`, `value`, `limit` say what is wrong; or too large a message
│   └── PromptTooLong
├── BudgetExceeded          FAILED_PRECONDITION, only if strict
├── RouteUnsupported        FAILED_PRECONDITION
├── Overloaded              RESOURCE_EXHAUSTED: come back after `retry_after_s`
├── Unavailable             UNAVAILABLE: nobody there, or gone while answering
├── DeadlineExceeded        DEADLINE_EXCEEDED
├── Cancelled               CANCELLED
├── Unauthenticated         UNAUTHENTICATED: no key, token or certificate, or none that holds
├── PermissionDenied        PERMISSION_DENIED: known, but this is not allowed
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
    """What a refusal carries. `retry_after_s` is None where the service names no time; `delivered_tokens` of an answer
    had come before it."""

    reason: str = ""
    field: str = ""
    value: str = ""
    limit: str = ""
    retry_after_s: float | None = None
    delivered_tokens: int = 0


class PresiftError(Exception):
    """Base of everything that a call raises. `code` is the gRPC status; `field`, `value`, `limit` may be empty.

    `delivered_tokens` of an answer had come before it: 0 says that asking again costs nothing twice."""

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
    """A field has a value outside its limits."""


class PromptTooLong(InvalidRequest):
    """Prompt plus answer exceed the context."""


class BudgetExceeded(PresiftError):
    """The budget was strict and cannot be met."""


class RouteUnsupported(PresiftError):
    """The route is not served there; `limit` lists what is."""


class Overloaded(PresiftError):
    """A queue is full; come back after `retry_after_s` seconds."""


class Unavailable(PresiftError):
    """Nobody there, or gone while answering."""


class DeadlineExceeded(PresiftError):
    """The deadline passed."""


class Cancelled(PresiftError):
    """The call was cancelled."""


class Unauthenticated(PresiftError):
    """The service does not know who calls: no key, token or certificate, or none that holds."""


class PermissionDenied(PresiftError):
    """The service knows who calls, and they may not do this."""


class InternalError(PresiftError):
    """A defect of the service."""


# How gRPC itself refuses a message over the size limit; it sends no reason.
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
    """What the service would have said, where the message cannot even be written."""
    details = Details("INVALID_REQUEST", field, value, limit)
    return InvalidRequest(f"{field} is {value}; it must be {limit}", grpc.StatusCode.INVALID_ARGUMENT, details)


def error_of(failure: grpc.RpcError, received_tokens: int = 0) -> PresiftError:
    """The typed error of a failed call (of grpc or grpc.aio), after so many tokens of an answer."""
    code = failure.code()
    details = _details(failure)
    # A service that died says nothing of what it had sent.
    details = replace(details, delivered_tokens=max(details.delivered_tokens, received_tokens))
    kind = _BY_REASON.get(details.reason) or _BY_CODE.get(code, InternalError)
    text = failure.details() or code.name
    if kind is Unavailable and not details.reason:  # gRPC's own words: "Socket closed", "Stream removed"
        text = f"the service cannot be reached, or was lost while it answered: {text}"
    if kind is Overloaded and _TOO_LARGE in text:
        kind = InvalidRequest  # coming back later would not help
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
