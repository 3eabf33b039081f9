"""What presift reads in SGLang's answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from presift.core.answer import AnswerDelta, AnswerFormat, Finished, ParsedText, TokenLogprob
from presift.core.errors import (
    BudgetExceeded,
    InternalError,
    InvalidRequest,
    PresiftError,
    PromptTooLong,
    RouteUnsupported,
    TargetUnavailable,
)
from presift.core.generation import FinishReason, Grammar, GrammarKind, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import SpecKv
from presift.target.engine import Event, GenerateRequest
from presift.target.sglang.engine import _events
from presift.target.sglang.messages import AnswerReader, token_logprobs
from presift.target.sglang.parsers import NO_PARSERS, Prepared
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


def request_of(**values: Any) -> GenerateRequest:
    wanted = values.pop("format", None)
    return GenerateRequest(np.array([1], dtype=np.uint32), Sampling(**values), format=wanted)


def read(*messages: dict[str, Any], request: GenerateRequest | None = None) -> list[Event]:
    reader = AnswerReader(request or request_of(), NO_PARSERS, Prepared())
    return [event for each in messages for event in reader.events(each)]


def refused(**reason: Any) -> PresiftError:
    with pytest.raises(PresiftError) as failure:
        read(message((7,), {"type": "abort", **reason}))
    return failure.value


def test_log_probabilities_have_one_item_for_each_delivered_token() -> None:
    logprobs = {
        "output_token_logprobs": [(-0.5, 7, None), (-0.1, 2, None)],
        "output_top_logprobs": [[(-0.5, 7, None), (-math.inf, 9, None)], [(-0.1, 2, None)]],
    }
    delta, _ = read(message((7, 2), STOP, **logprobs))
    assert delta == AnswerDelta((7,), (TokenLogprob(7, -0.5, ((7, -0.5),)),))


def test_without_top_tokens_there_is_the_token_alone() -> None:
    assert token_logprobs([(-0.5, 7, None)], None) == (TokenLogprob(7, -0.5),)


def test_the_prompts_log_probabilities_come_with_the_end() -> None:
    request = request_of(top_logprobs=1, prompt_logprobs=True)
    of_prompt = {
        "input_token_logprobs": [(None, 1, None), (-2.0, 3, None)],
        "input_top_logprobs": [None, [(-1.0, 4, None)]],
    }
    finished = read(message((7,), **of_prompt), message((2,), STOP), request=request)[-1]
    assert isinstance(finished, Finished)
    assert finished.prompt_logprobs == (TokenLogprob(1, None), TokenLogprob(3, -2.0, ((4, -1.0),)))


def test_they_are_read_once_although_every_message_has_them() -> None:
    class Counted(list[Any]):
        reads = 0

        def __iter__(self) -> Iterator[Any]:
            self.reads += 1
            return super().__iter__()

    of_prompt = Counted([(-2.0, 3, None)])
    messages = [message((7,), reason, input_token_logprobs=of_prompt) for reason in (None, None, None, STOP)]
    finished = read(*messages, request=request_of(top_logprobs=0, prompt_logprobs=True))[-1]
    assert isinstance(finished, Finished) and len(finished.prompt_logprobs) == 1
    assert of_prompt.reads == 1


@pytest.mark.parametrize("tokens", [10, 10_000])
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
async def test_what_takes_long_to_read_is_read_outside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, tokens: int, is_last: bool, has_mask: bool
) -> None:
    threads = set()
    kept = KvMask(np.ones((4, 4, 8 * tokens), dtype=np.bool_))
    report = REPORT | {"kv_mask": custom_params.mask_to_values(kept)}
    more = {"presift": [report]} if has_mask else {"input_token_logprobs": [(-2.0, 3, None)] * tokens}
    reader = AnswerReader(request_of(top_logprobs=0, prompt_logprobs=True), NO_PARSERS, Prepared())
    read_events = reader.events

    def noting(answer: dict[str, Any]) -> Iterator[Event]:
        threads.add(threading.current_thread() is threading.main_thread())
        return read_events(answer)

    monkeypatch.setattr(reader, "events", noting)
    events = list(await _events(reader, message((7,), STOP if is_last else None, **more)))
    assert isinstance(events[-1], Finished) == is_last
    assert threads == {tokens == 10 or not is_last}


def test_reasoning_tokens_are_counted_by_sglang() -> None:
    finished = read(message((2,), STOP, reasoning_tokens=5))[-1]
    assert isinstance(finished, Finished)
    assert finished.reasoning_tokens == 5


def test_a_stop_string_is_cut_although_it_arrives_in_parts() -> None:
    request = request_of(stop=("END",), format=AnswerFormat(separate_reasoning=True))
    parts = [("a E", None), ("ND of", {"type": "stop", "matched": "END"})]
    events = read(*({**message((7,), reason), "text": text} for text, reason in parts), request=request)
    assert [each.parsed for each in events[:-1] if isinstance(each, AnswerDelta)] == [ParsedText("a "), ParsedText("")]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "Failed to compile regex grammar: [03:13:30] /project/cpp/regex.cc:83: The parenthesis is not closed.\n",
            "The parenthesis is not closed.",
        ),
        ("Failed to compile json grammar: ", "it is malformed"),
        ("Grammar preprocessing timed out: req.grammar_key=('regex', 'secret')", "it takes too long"),
        (f"Failed to compile ebnf grammar: {'x' * 5000}", "x" * 300),
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_the_callers_mistake(said: str, why: str) -> None:
    request = request_of(grammar=Grammar(GrammarKind.REGEX, "("))
    with pytest.raises(InvalidRequest) as failure:
        read(message((7,), {"type": "abort", "status_code": 400, "message": said}), request=request)
    assert failure.value.field == "sampling.regex"
    assert failure.value.message == f"sampling.regex cannot be compiled: {why}"


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


def test_the_last_report_counts_and_the_first_has_the_mask() -> None:
    first = REPORT | {"kv_mask": custom_params.mask_to_values(MASK), "renewals": 0}
    *_, finished = read(message((7,), presift=[first]), message((2,), STOP, presift=[None, REPORT | {"renewals": 3}]))
    assert isinstance(finished, Finished)
    assert (finished.kv_mask, finished.renewals) == (MASK, 3)


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
    reader = AnswerReader(request_of(), NO_PARSERS, Prepared())
    with pytest.raises(TargetUnavailable):
        next(reader.events(message((7, 8), {"type": "abort", "message": "m"})))
