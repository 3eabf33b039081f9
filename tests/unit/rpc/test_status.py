"""The one table between errors and gRPC, both ways."""

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from presift.core import errors
from presift.rpc.status import (
    DETAILS_KEY,
    DOMAIN,
    MAX_DETAIL_CHARACTERS,
    MAX_MESSAGE_CHARACTERS,
    TABLE,
    code_and_reason,
    details_of,
    error_of,
    message_of,
)
from presift.v1 import errors_pb2

FIELD = ("prompt", 5, "<= 4")
SAMPLES = [
    (errors.InvalidRequest(*FIELD), "INVALID_ARGUMENT", "INVALID_REQUEST"),
    (errors.PromptTooLong(*FIELD), "INVALID_ARGUMENT", "PROMPT_TOO_LONG"),
    (errors.BudgetExceeded(*FIELD), "FAILED_PRECONDITION", "BUDGET_EXCEEDED"),
    (errors.RouteUnsupported(*FIELD, "in words"), "FAILED_PRECONDITION", "ROUTE_UNSUPPORTED"),
    (errors.Overloaded("queue", 9, 8, 2.5), "RESOURCE_EXHAUSTED", "OVERLOADED"),
    (errors.DraftUnavailable("away"), "UNAVAILABLE", "DRAFT_UNAVAILABLE"),
    (errors.TargetUnavailable("away"), "UNAVAILABLE", "TARGET_UNAVAILABLE"),
    (errors.ShuttingDown("draining"), "UNAVAILABLE", "SHUTTING_DOWN"),
    (errors.VocabularyMismatch("differ", draft="f1", target="f2"), "FAILED_PRECONDITION", "VOCABULARY_MISMATCH"),
    (errors.DeadlineExceeded("late"), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
    (errors.Unauthenticated("who?"), "UNAUTHENTICATED", "UNAUTHENTICATED"),
    (errors.PermissionDenied("not you"), "PERMISSION_DENIED", "PERMISSION_DENIED"),
    (errors.InternalError("a defect"), "INTERNAL", "INTERNAL"),
]
KINDS = [type(error).__name__ for error, _, _ in SAMPLES]


def failure(raw, code=grpc.StatusCode.UNKNOWN):
    trailers = grpc.aio.Metadata((DETAILS_KEY, raw)) if raw is not None else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, "in words")


def leaves(kind):
    below = [leaf for each in kind.__subclasses__() if each.__module__ == errors.__name__ for leaf in leaves(each)]
    return [*([] if kind in (errors.PresiftError, errors.FieldError) else [kind]), *below]


def test_every_error_has_a_sample_and_a_row():
    assert {type(error) for error, _, _ in SAMPLES} == set(leaves(errors.PresiftError))
    assert set(leaves(errors.PresiftError)) <= {kind for kind, _, _ in TABLE}


def test_reasons_are_unique_but_for_the_base():
    reasons = [reason for kind, _, reason in TABLE if kind is not errors.PresiftError]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize(("error", "code", "reason"), SAMPLES, ids=KINDS)
def test_code_and_reason(error, code, reason):
    assert code_and_reason(error) == (grpc.StatusCode[code], reason)


@pytest.mark.parametrize(("error", "code", "reason"), SAMPLES, ids=KINDS)
def test_there_and_back(error, code, reason):
    back = error_of(failure(details_of(error)))
    assert type(back) is type(error)
    assert (back.message, back.details) == (error.message, error.details)
    assert getattr(back, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_an_overload_without_a_time_to_retry_stays_so():
    back = error_of(failure(details_of(errors.Overloaded("answer", 9, 8, None))))
    assert type(back) is errors.Overloaded and back.retry_after_s is None


@pytest.mark.parametrize(("error", "code", "reason"), SAMPLES, ids=KINDS)
def test_googles_decoder_reads_it(error, code, reason):
    raw = details_of(error)
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (code_pb2.Code.Value(code), error.message)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason, DOMAIN, error.details)
    retry = error_details_pb2.RetryInfo()
    if isinstance(error, errors.Overloaded):
        assert status.details[1].Unpack(retry) and retry.retry_delay.ToMilliseconds() == 2500
    else:
        assert len(status.details) == 1
    # And what google's own messages write, ours read as the same.
    assert errors_pb2.ErrorInfo.FromString(info.SerializeToString()).metadata == error.details
    again = errors_pb2.Status.FromString(status.SerializeToString())
    assert again == errors_pb2.Status.FromString(raw)


def test_a_class_of_ones_own_takes_its_bases_row():
    class Odd(errors.DraftUnavailable):
        """Known to one service alone."""

    assert code_and_reason(Odd("x")) == (grpc.StatusCode.UNAVAILABLE, "DRAFT_UNAVAILABLE")
    assert type(error_of(failure(details_of(Odd("x"))))) is errors.DraftUnavailable


def packed(info):
    status = errors_pb2.Status(code=13, message="m")
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
    return status.SerializeToString()


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"\xff\xff",
        "text",
        errors_pb2.Status(code=14, message="a proxy's").SerializeToString(),
        packed(errors_pb2.ErrorInfo(reason="OVERLOADED", domain="else.where")),
    ],
)
def test_what_is_not_ours_is_none(raw):
    assert error_of(failure(raw)) is None


def test_a_newer_services_reason_is_an_internal_error():
    back = error_of(failure(packed(errors_pb2.ErrorInfo(reason="BRAND_NEW", domain=DOMAIN))))
    assert type(back) is errors.InternalError


@given(
    reason=st.sampled_from([reason for _, _, reason in TABLE]) | st.text(max_size=5),
    metadata=st.dictionaries(
        st.sampled_from(["field", "value", "message", "self", "limit"]) | st.text(max_size=5), st.text(max_size=5)
    ),
)
def test_no_metadata_of_a_peer_does_harm(reason, metadata):
    info = errors_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    assert isinstance(error_of(failure(packed(info))), errors.PresiftError)


@given(raw=st.binary(max_size=80))
def test_no_bytes_of_a_peer_do_harm(raw):
    error_of(failure(raw))


def test_an_error_fits_what_metadata_may_hold():
    back = error_of(failure(details_of(errors.InvalidRequest("prompt", "x" * 100_000, "y" * 100_000))))
    assert len(details_of(errors.InvalidRequest("prompt", "x" * 100_000, "y" * 100_000))) < 4096
    assert len(back.message) == MAX_MESSAGE_CHARACTERS and back.message.startswith("prompt is xxx")
    assert len(back.details["value"]) == MAX_DETAIL_CHARACTERS and back.details["limit"].endswith("…")
    assert message_of(errors.InternalError("short")) == "short"
