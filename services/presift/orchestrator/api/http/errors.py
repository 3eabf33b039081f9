"""The one table from presift's errors to HTTP: status, OpenAI's type and code. `rpc/status.py` is the one to gRPC.

An error has OpenAI's shape, {"error": {"message", "type", "param", "code"}}. `presift` adds the reason, field, value
and limit, as in google.rpc.ErrorInfo. `param` is the caller's own parameter; `presift.field` is the same as over gRPC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from presift.core.errors import FieldError, Overloaded, PresiftError, PromptTooLong
from presift.core.generation import ContextSizes
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.rpc.status import code_and_reason, details_for, message_of


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """`is_final` tells OpenAI's clients not to retry; they retry every 5xx and 429 otherwise."""

    status: int
    type: str
    code: str
    is_final: bool = False


_NO_RETRY = {"x-should-retry": "false"}
_INVALID, _SERVER = "invalid_request_error", "server_error"

# By the reason of ErrorInfo.
TABLE: dict[str, ErrorRow] = {
    "INVALID_REQUEST": ErrorRow(400, _INVALID, "invalid_value"),
    "PROMPT_TOO_LONG": ErrorRow(400, _INVALID, "context_length_exceeded"),
    "BUDGET_EXCEEDED": ErrorRow(400, _INVALID, "budget_exceeded"),
    "ROUTE_UNSUPPORTED": ErrorRow(400, _INVALID, "route_unsupported"),
    "UNAUTHENTICATED": ErrorRow(401, "authentication_error", "invalid_api_key"),
    "PERMISSION_DENIED": ErrorRow(403, "permission_error", "permission_denied"),
    "OVERLOADED": ErrorRow(429, "rate_limit_error", "rate_limit_exceeded"),
    "INTERNAL": ErrorRow(500, _SERVER, "internal_error", is_final=True),
    "VOCABULARY_MISMATCH": ErrorRow(500, _SERVER, "vocabulary_mismatch", is_final=True),
    "DRAFT_UNAVAILABLE": ErrorRow(503, _SERVER, "draft_unavailable"),
    "TARGET_UNAVAILABLE": ErrorRow(503, _SERVER, "target_unavailable"),
    "SHUTTING_DOWN": ErrorRow(503, _SERVER, "shutting_down"),
    "DEADLINE_EXCEEDED": ErrorRow(504, _SERVER, "deadline_exceeded", is_final=True),
}

# Errors that exist over HTTP only.
NOT_FOUND = ErrorRow(404, _INVALID, "not_found")
MODEL_NOT_FOUND = ErrorRow(404, _INVALID, "model_not_found")
METHOD_NOT_ALLOWED = ErrorRow(405, _INVALID, "method_not_allowed")
BODY_TIMEOUT = ErrorRow(408, _INVALID, "body_timeout", is_final=True)
TOO_LARGE = ErrorRow(413, _INVALID, "body_too_large")
UNSUPPORTED_MEDIA = ErrorRow(415, _INVALID, "unsupported_media_type")


class ClientDisconnected(Exception):
    """The client closed its connection: no response can be sent."""


class HttpError(PresiftError):
    """An error that has no counterpart in gRPC. `param` is the invalid parameter, if there is one."""

    def __init__(self, row: ErrorRow, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.row = row
        self.param = param


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error as HTTP sends it."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def error_response(error: PresiftError, names: ParameterNames | None = None) -> ErrorResponse:
    """`names` are those of the request, None if its body was not read yet."""
    if isinstance(error, HttpError):
        return _response(error.row, message_of(error), error.param, {})
    _, reason = code_and_reason(error)
    param, message = None, message_of(error)
    if isinstance(error, FieldError):
        param = error.field if names is None else names.parameter(error.field)
        if error.field and message.startswith(f"{error.field} "):
            message = param + message.removeprefix(error.field)
    if isinstance(error, PromptTooLong):
        message = _context_message(message, error.sizes, is_chat=names is not None and names.prompt == "messages")
    response = _response(TABLE[reason], message, param, {"reason": reason, **details_for(error)})
    if isinstance(error, Overloaded):
        response.headers.update(_retry_headers(error.retry_after_s))
    return response


def _context_message(message: str, sizes: ContextSizes | None, *, is_chat: bool) -> str:
    """OpenAI's words, by which other software recognises the error (LiteLLM, agents that then shorten their prompt),
    followed by presift's and by those that LangChain looks for."""
    if sizes is None:
        return f"{message}. This exceeds the model's maximum context limit or a limit of this server."
    needed, place = sizes.prompt_tokens + sizes.max_new_tokens, "messages" if is_chat else "prompt"
    return (
        f"This model's maximum context length is {sizes.context_tokens} tokens. However, you requested {needed} tokens"
        f" ({sizes.prompt_tokens} in the {place}, {sizes.max_new_tokens} in the completion). Please reduce the length"
        f" of the {place} or completion. ({message}; the prompt is too long)"
    )


def brief(value: object) -> str:
    """A value as an error message may show it: numbers and short strings; otherwise its type only."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a large number"
    if value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 32):
        return repr(value)
    kinds: tuple[tuple[type[object], str], ...] = ((str, "a long string"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "another value")


def _response(row: ErrorRow, message: str, param: str | None, details: dict[str, str]) -> ErrorResponse:
    error = {"message": message, "type": row.type, "param": param, "code": row.code}
    headers = dict(_NO_RETRY) if row.is_final else {}
    if row.status == TABLE["UNAUTHENTICATED"].status:
        headers["www-authenticate"] = "Bearer"
    return ErrorResponse(row.status, headers, {"error": error | ({"presift": details} if details else {})})


def _retry_headers(retry_after_s: float | None) -> dict[str, str]:
    """The standard header has whole seconds; OpenAI's clients read milliseconds from another one."""
    if retry_after_s is None:
        return _NO_RETRY
    return {"retry-after": str(max(1, math.ceil(retry_after_s))), "retry-after-ms": str(int(retry_after_s * 1000))}
