"""From failed calls to typed errors, from the service or from a proxy."""

import grpc
import pytest

import presift_client as pc
from presift.core import errors
from presift.rpc.status import code_and_reason, details_of
from presift_client.errors import error_of

FIELD = ("prompt", 5, "<= 4")
SENT = [
    (errors.InvalidRequest(*FIELD), pc.InvalidRequest),
    (errors.PromptTooLong(*FIELD), pc.PromptTooLong),
    (errors.BudgetExceeded(*FIELD), pc.BudgetExceeded),
    (errors.RouteUnsupported(*FIELD), pc.RouteUnsupported),
    (errors.Overloaded(*FIELD, retry_after_s=2.5), pc.Overloaded),
    (errors.DraftUnavailable("away"), pc.Unavailable),
    (errors.TargetUnavailable("away"), pc.Unavailable),
    (errors.ShuttingDown("draining"), pc.Unavailable),
    (errors.DeadlineExceeded("late"), pc.DeadlineExceeded),
    (errors.Unauthenticated("who?"), pc.Unauthenticated),
    (errors.PermissionDenied("not you"), pc.PermissionDenied),
    (errors.InternalError("a defect"), pc.InternalError),
]


def failure(code, raw=None, details="a message"):
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", raw)) if raw is not None else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)


@pytest.mark.parametrize(("sent", "kind"), SENT, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_what_a_service_sends(sent, kind):
    code, reason = code_and_reason(sent)
    error = error_of(failure(code, details_of(sent), sent.message))
    assert type(error) is kind and isinstance(error, pc.PresiftError)
    assert (str(error), error.code, error.reason) == (sent.message, code, reason)
    assert (error.field, error.value, error.limit) == tuple(
        sent.details.get(name, "") for name in ("field", "value", "limit")
    )
    assert error.retry_after_s == getattr(sent, "retry_after_s", None)


BARE = {
    "UNAVAILABLE": pc.Unavailable,
    "DEADLINE_EXCEEDED": pc.DeadlineExceeded,
    "CANCELLED": pc.Cancelled,
    "RESOURCE_EXHAUSTED": pc.Overloaded,
    "INVALID_ARGUMENT": pc.InvalidRequest,
    "UNAUTHENTICATED": pc.Unauthenticated,
    "PERMISSION_DENIED": pc.PermissionDenied,
    "UNIMPLEMENTED": pc.InternalError,
    "FAILED_PRECONDITION": pc.InternalError,
    "UNKNOWN": pc.InternalError,
}


@pytest.mark.parametrize(("code", "kind"), BARE.items(), ids=BARE)
@pytest.mark.parametrize("raw", [None, b"", b"\xff\xff"])
def test_what_a_proxy_sends(code, kind, raw):
    error = error_of(failure(grpc.StatusCode[code], raw))
    assert type(error) is kind and (error.reason, error.retry_after_s) == ("", None)


def test_the_message_defaults_to_the_status():
    assert str(error_of(failure(grpc.StatusCode.DEADLINE_EXCEEDED, details=""))) == "DEADLINE_EXCEEDED"


def test_grpcs_own_messages_get_a_context():
    lost = error_of(failure(grpc.StatusCode.UNAVAILABLE, details="Socket closed"))
    assert str(lost) == "the service is unreachable, or the connection was lost during the answer: Socket closed"


def test_a_message_over_the_size_limit_is_an_invalid_request():
    text = "SERVER: Received message larger than max (104857600 vs. 67108864)"
    error = error_of(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, None, text))
    assert type(error) is pc.InvalidRequest and str(error) == text
