"""What presift says to SGLang, and what it hears in its answers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from presift.core.answer import AnswerDelta
from presift.core.errors import (
    BudgetExceeded,
    InternalError,
    InvalidRequest,
    PresiftError,
    PromptTooLong,
    RouteUnsupported,
    TargetUnavailable,
)
from presift.core.generation import FinishReason, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import SpecKv
from presift.models.torchvision_ops import declare_missing
from presift.target.engine import Event, Finished, GenerateRequest
from presift.target.sglang.messages import AnswerReader, sampling_arguments, to_sglang
from presift.target.sglang_plugin import custom_params

PLAN = KvPlan(SpecKv(capacity=8, window=3), lookahead_token_ids=(4, 5))
MASK = KvMask(np.array([[[True, False, True]]]))
REPORT = {
    "prompt_tokens": 20,
    "kv_tokens": 9,
    "cached_tokens": 8,
    "reused_entry": True,
    "score_ms": 1.5,
    "publish_ms": 2.5,
    "coverage": 0.75,
    "kv_mask": None,
}


def message(token_ids: tuple[int, ...] = (), reason: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": 9, "cached_tokens": 8, "completion_tokens": 2}
    return {"output_ids": list(token_ids), "meta_info": {**counts, "finish_reason": reason, **meta}}


def read(*messages: dict[str, Any]) -> list[Event]:
    reader = AnswerReader()
    return [event for each in messages for event in reader.events(each)]


def refused(**reason: Any) -> PresiftError:
    with pytest.raises(PresiftError) as failure:
        read(message((7,), {"type": "abort", **reason}))
    return failure.value


STOP, LENGTH = {"type": "stop", "matched": 2}, {"type": "length", "length": 2}


def test_an_ordinary_answer_counts_as_sglang_does() -> None:
    events = read(message((7,)), message((8,), LENGTH))
    assert events == [AnswerDelta((7,)), AnswerDelta((8,)), Finished(9, 8, 2, FinishReason.LENGTH, kv_tokens=9)]


def test_a_stop_token_is_not_delivered_and_a_stop_strings_tokens_are() -> None:
    assert read(message((7, 2), STOP))[0] == AnswerDelta((7,))
    assert read(message((2,), STOP)) == [Finished(9, 8, 2, FinishReason.STOP, kv_tokens=9)]
    assert read(message((7, 8), {"type": "stop", "matched": "x"}))[0] == AnswerDelta((7, 8))


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ([REPORT], None),
        ([REPORT], [None]),
        ([None, REPORT], []),
        ([REPORT, None], [None, None]),
        (None, [None, REPORT]),
    ],
    ids=str,
)
def test_the_plugins_report_is_remembered_from_whichever_message_has_it(first: Any, last: Any) -> None:
    events = read(message((7,), presift=first), message((8,)), message((2,), STOP, presift=last))
    assert events[:2] == [AnswerDelta((7,)), AnswerDelta((8,))]
    assert events[2:] == [Finished(20, 8, 2, FinishReason.STOP, 9, True, 1.5, 2.5, 0.75, None)]


def test_a_batch_in_which_only_others_report_is_no_report() -> None:
    assert read(message((7,), LENGTH, presift=[None]))[-1] == Finished(9, 8, 2, FinishReason.LENGTH, kv_tokens=9)


def test_a_reported_mask_is_read() -> None:
    report = REPORT | {"kv_mask": custom_params.mask_to_values(MASK)}
    (finished,) = read(message((2,), STOP, presift=[report]))
    assert isinstance(finished, Finished)
    assert finished.kv_mask == MASK


def test_answers_are_apart() -> None:
    assert read(message((7,), presift=[REPORT]))
    assert read(message((2,), STOP)) == [Finished(9, 8, 2, FinishReason.STOP, kv_tokens=9)]


def test_a_route_that_the_plugin_does_not_serve() -> None:
    error = refused(err_type="presift.RouteUnsupported", status_code=400, message="not here: LoRA")
    assert type(error) is RouteUnsupported
    assert (error.field, error.message) == ("kv_plan", "not here: LoRA")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (InvalidRequest, "kv_plan"),
        (BudgetExceeded, "kv_plan"),
        (PromptTooLong, "token_ids"),
        (RouteUnsupported, "kv_plan"),
    ],
)
def test_a_plan_that_the_plugin_refuses(kind: type[PresiftError], field: str) -> None:
    error: Any = refused(err_type=f"presift.{kind.__name__}", status_code=400, message="capacity is 3; not > 4")
    assert type(error) is kind
    assert (error.field, error.message) == (field, "capacity is 3; not > 4")
    assert all(error.details.values())


def test_a_defect_of_the_plugin_is_a_defect_of_ours() -> None:
    error = refused(err_type="presift.InternalError", status_code=500, message="presift: KeyError")
    assert (type(error), error.message) == (InternalError, "presift: KeyError")


def test_classes_of_others_and_of_later_plugins_are_no_class_of_ours() -> None:
    for kind in ("theirs.InvalidRequest", "InvalidRequest", "presift.Other", "presift"):
        assert type(refused(err_type=kind, status_code=503, message="m")) is TargetUnavailable


@pytest.mark.parametrize("reason", [{"status_code": 503, "err_type": "presift"}, {"status_code": 500}, {}])
def test_other_aborts_are_target_unavailable(reason: dict[str, Any]) -> None:
    error = refused(message="no room", **reason)
    assert type(error) is TargetUnavailable
    assert error.message == "no room"
    assert "aborted" in refused(**reason).message


def test_a_refusal_of_sglangs_own_is_a_defect_of_ours() -> None:
    assert type(refused(status_code=400, message="secret prompt", err_type="BadRequestError")) is InternalError
    assert "secret" not in refused(status_code=400, message="secret prompt").message


def test_nothing_is_delivered_of_an_aborted_answer() -> None:
    reader = AnswerReader()
    with pytest.raises(TargetUnavailable):
        next(reader.events(message((7, 8), {"type": "abort", "message": "m"})))


def test_the_plan_travels_as_one_text() -> None:
    request = GenerateRequest(np.array([1, 2], dtype=np.uint32), kv_plan=PLAN)
    (name, text), *others = sampling_arguments(request)["custom_params"].items()
    assert (name, others) == (custom_params.KEY, [])
    assert custom_params.from_text(text) == PLAN


@pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")
def test_sglang_takes_the_request() -> None:
    declare_missing()
    tokens = np.array([1, 2, 3], dtype=np.uint32)
    planned = to_sglang(GenerateRequest(tokens, Sampling(max_new_tokens=5), "salt", PLAN))
    plain, other = to_sglang(GenerateRequest(tokens)), to_sglang(GenerateRequest(tokens))
    assert (planned.input_ids, planned.cache_salt, planned.stream) == ([1, 2, 3], "salt", True)
    assert planned.sampling_params["max_new_tokens"] == 5
    assert custom_params.from_text(planned.sampling_params["custom_params"]["presift"]) == PLAN
    assert (plain.cache_salt, plain.sampling_params["custom_params"]) == (None, None)
    assert len({planned.rid, plain.rid, other.rid}) == 3


@pytest.mark.parametrize(("top_k", "sent"), [(None, -1), (1, 1), (40, 40), (2**30, 2**30), (2**32 - 1, 2**30)])
def test_top_k_fits_the_schedulers_int32(top_k: int | None, sent: int) -> None:
    request = GenerateRequest(np.array([1], dtype=np.uint32), Sampling(top_k=top_k))
    assert sampling_arguments(request)["top_k"] == sent
