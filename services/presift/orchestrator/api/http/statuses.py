"""The one table from presift's errors to HTTP, beside that to gRPC (`rpc/status.py`): status, OpenAI's type and code.

An error travels in OpenAI's shape, {"error": {"message", "type", "param", "code"}}, and what it further knows under
"presift": reason, field, value, limit, as google.rpc.ErrorInfo has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from presift.core.errors import FieldError, Overloaded, PresiftError
from presift.orchestrator.api.http.parameter_names import parameter_of
from presift.rpc.status import code_and_reason, details_for, message_of


@dataclass(frozen=True, slots=True)
class Row:
    """`is_final` tells OpenAI's clients, which ask again after any 5xx, not to."""

    status: int
    type: str
    code: str
    is_final: bool = False


_INVALID, _SERVER = "invalid_request_error", "server_error"

# By reason, as ErrorInfo has it.
TABLE: dict[str, Row] = {
    "INVALID_REQUEST": Row(400, _INVALID, "invalid_value"),
    "PROMPT_TOO_LONG": Row(400, _INVALID, "context_length_exceeded"),
    "BUDGET_EXCEEDED": Row(400, _INVALID, "budget_exceeded"),
    "ROUTE_UNSUPPORTED": Row(400, _INVALID, "route_unsupported"),
    "UNAUTHENTICATED": Row(401, "authentication_error", "invalid_api_key"),
    "PERMISSION_DENIED": Row(403, "permission_error", "permission_denied"),
    "OVERLOADED": Row(429, "rate_limit_error", "rate_limit_exceeded"),
    "INTERNAL": Row(500, _SERVER, "internal_error", is_final=True),
    "VOCABULARY_MISMATCH": Row(500, _SERVER, "vocabulary_mismatch", is_final=True),
    "DRAFT_UNAVAILABLE": Row(503, _SERVER, "draft_unavailable"),
    "TARGET_UNAVAILABLE": Row(503, _SERVER, "target_unavailable"),
    "SHUTTING_DOWN": Row(503, _SERVER, "shutting_down"),
    "DEADLINE_EXCEEDED": Row(504, _SERVER, "deadline_exceeded", is_final=True),
}

# What only HTTP can get wrong.
NOT_FOUND = Row(404, _INVALID, "not_found")
MODEL_NOT_FOUND = Row(404, _INVALID, "model_not_found")
METHOD_NOT_ALLOWED = Row(405, _INVALID, "method_not_allowed")
BODY_TIMEOUT = Row(408, _INVALID, "body_timeout", is_final=True)
TOO_LARGE = Row(413, _INVALID, "body_too_large")
UNSUPPORTED_MEDIA = Row(415, _INVALID, "unsupported_media_type")


class HttpRefusal(PresiftError):
    """Refused by `row`, for what gRPC has no counterpart of; `param` is the parameter that is wrong, if one is."""

    def __init__(self, row: Row, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.row = row
        self.param = param


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as HTTP tells it."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def refusal_of(error: PresiftError) -> Refusal:
    """The row of `error`, its words and, where it says so, when to come back."""
    if isinstance(error, HttpRefusal):
        return _refusal(error.row, message_of(error), error.param, {})
    _, reason = code_and_reason(error)
    param, message = None, message_of(error)
    if isinstance(error, FieldError):
        param = parameter_of(error.field)
        message = message.replace(error.field, param, 1) if message.startswith(f"{error.field} ") else message
    refusal = _refusal(TABLE[reason], message, param, {"reason": reason, **details_for(error)})
    if isinstance(error, Overloaded):
        refusal.headers.update(_come_back(error.retry_after_s))
    return refusal


def _refusal(row: Row, message: str, param: str | None, known: dict[str, str]) -> Refusal:
    told = {"message": message, "type": row.type, "param": param, "code": row.code}
    headers = {"x-should-retry": "false"} if row.is_final else {}
    if row.status == TABLE["UNAUTHENTICATED"].status:
        headers["www-authenticate"] = "Bearer"
    return Refusal(row.status, headers, {"error": told | ({"presift": known} if known else {})})


def _come_back(retry_after_s: float) -> dict[str, str]:
    """The standard's header counts whole seconds; OpenAI's clients know a finer one."""
    return {"retry-after": str(max(1, math.ceil(retry_after_s))), "retry-after-ms": str(int(retry_after_s * 1000))}
