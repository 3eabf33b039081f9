"""A request with a plan is rewritten to its entry's name, or refused with the reason."""

from __future__ import annotations

import json
from array import array
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.core.errors import (  # noqa: E402 - the plugin needs torch
    BudgetExceeded,
    InternalError,
    InvalidRequest,
    PresiftError,
    PromptTooLong,
    RouteUnsupported,
)
from presift.core.kv_plan import KvPlan  # noqa: E402
from presift.core.policies import SpecKv  # noqa: E402
from presift.models.torchvision_ops import declare_missing  # noqa: E402
from presift.target.sglang_plugin import validation  # noqa: E402
from presift.target.sglang_plugin.custom_params import KEY  # noqa: E402
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, Report, entry_name  # noqa: E402

PLAN = {"capacity": 8, "window": 3, "lookahead": [50, 51]}


ENGINE = ("model", None, "weights", "0.5.21", "0.1.0")


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "engine_identity", lambda scheduler: ENGINE)


def scheduler(page_size: int = 1, **limits: Any) -> Any:
    return SimpleNamespace(
        page_size=page_size,
        model_config=SimpleNamespace(
            num_hidden_layers=3, context_len=100, vocab_size=512, get_total_num_kv_heads=lambda: 2
        ),
        **{"max_req_len": 90, "max_total_num_tokens": 1000} | limits,
    )


def received(plan: Any = None, tokens: int = 20, sampling: dict[str, Any] | None = None, **others: Any) -> Any:
    values = {
        "n": 1,
        "max_new_tokens": 10,
        "custom_params": {KEY: json.dumps(PLAN if plan is None else plan), "theirs": 1},
    }
    request = {
        "rid": "r",
        "input_ids": array("q", range(tokens)),
        "extra_key": None,
        "cache_salt": None,
        "return_logprob": False,
        "logprob_start_len": -1,
        "lora_id": None,
        "session_params": None,
        "session_id": None,
        "input_embeds": None,
        "mm_inputs": None,
        "return_hidden_states": False,
        "positional_embed_overrides": None,
        "token_type_ids": None,
        "token_indices_to_pool": None,
        "multi_item_delimiter_indices": None,
        "custom_logit_processor": None,
    }
    return SimpleNamespace(sampling_params=SimpleNamespace(**values | (sampling or {})), **request | others)


def refusal_of(kind: type[PresiftError], request: Any, where: Any = None, unsupported: str | None = None) -> Any:
    before = list(request.input_ids), request.extra_key, request.sampling_params.custom_params
    with pytest.raises(kind) as refusal:
        validation.rewrite_request(where or scheduler(), request, unsupported)
    assert (list(request.input_ids), request.extra_key, request.sampling_params.custom_params) == before
    assert type(refusal.value) is kind
    return refusal.value


def test_a_request_becomes_its_entrys_name_and_the_final_token() -> None:
    request = received(extra_key="theirs", cache_salt="salt")
    sent = request.sampling_params.custom_params
    validation.rewrite_request(scheduler(), request, None)
    state = request.sampling_params.custom_params[KEY]
    plan = KvPlan(SpecKv(capacity=8, window=3, lookahead_tokens=2), lookahead_token_ids=(50, 51))
    assert isinstance(state, DecodeState)
    assert (state.plan, state.prompt, state.kept) == (plan, array("q", range(20)), 8)
    assert (state.extra_key, state.suffix_tokens, state.shift) == ("theirs", 0, 11)
    assert request.input_ids == array("q", [*range(8), 19])
    assert request.extra_key == state.entry == entry_name(plan, state.prompt, 8, ("theirs", "salt"), ENGINE)
    assert request.sampling_params.custom_params["theirs"] == 1
    assert isinstance(sent[KEY], str)  # SGLang may hold the same parameters for other requests


def test_tokens_after_the_plans_prompt_stay_unchanged() -> None:
    request = received({**PLAN, "prompt_tokens": 15})
    validation.rewrite_request(scheduler(), request, None)
    state = request.sampling_params.custom_params[KEY]
    assert (len(state.prompt), state.suffix_tokens, state.shift) == (15, 5, 6)
    assert request.input_ids == array("q", [*range(8), 14, *range(15, 20)])


@pytest.mark.parametrize(("tokens", "page_size"), [(8, 1), (4, 4), (1, 1)])
def test_a_prompt_that_fits_stays_unchanged(tokens: int, page_size: int) -> None:
    request = received(tokens=tokens, extra_key="theirs")
    validation.rewrite_request(scheduler(page_size), request, None)
    state = request.sampling_params.custom_params[KEY]
    assert isinstance(state, PassthroughState)
    assert state.report == Report(tokens, tokens, 0)
    assert (request.input_ids, request.extra_key) == (array("q", range(tokens)), "theirs")


def test_pages_round_what_is_kept() -> None:
    request = received({**PLAN, "capacity": 11})
    validation.rewrite_request(scheduler(page_size=4), request, None)
    assert request.sampling_params.custom_params[KEY].kept == 8


def test_a_plugin_that_is_not_supported_refuses_every_plan() -> None:
    refusal = refusal_of(RouteUnsupported, received("{"), unsupported="LoRA")
    assert "LoRA" in refusal.message


UNSUPPORTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "n": ({"n": 2}, {}),
    "logprob_start_len": ({}, {"return_logprob": True, "logprob_start_len": 0}),
    "lora_id": ({}, {"lora_id": "l"}),
    "session": ({}, {"session_id": "s"}),
    "session ": ({}, {"session_params": object()}),
    "input_embeds": ({}, {"input_embeds": [[0.0]]}),
    "input_embeds ": ({}, {"mm_inputs": object()}),
    "return_hidden_states": ({}, {"return_hidden_states": True}),
    "beam_width": ({"beam_width": 2}, {}),
    "watermark": ({"watermark": {}}, {}),
    "positional_embed_overrides": ({}, {"positional_embed_overrides": object()}),
    "token_type_ids": ({}, {"token_type_ids": [0]}),
    "token_indices_to_pool": ({}, {"token_indices_to_pool": [0]}),
    "multi_item_delimiter_indices": ({}, {"multi_item_delimiter_indices": []}),
    "custom_logit_processor": ({}, {"custom_logit_processor": "{}"}),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_features_are_refused(name: str) -> None:
    sampling, others = UNSUPPORTED[name]
    refusal = refusal_of(InvalidRequest, received(sampling=sampling, **others))
    assert (refusal.field, refusal.value) == (name.strip(), "set")


@pytest.mark.parametrize("beam_width", [None, 1])
def test_a_single_beam_is_not_refused(beam_width: int | None) -> None:
    request = received(sampling={"beam_width": beam_width})
    validation.rewrite_request(scheduler(), request, None)
    assert isinstance(request.sampling_params.custom_params[KEY], DecodeState)


def test_unsupported_features_have_sglangs_names() -> None:
    """With an unknown name each request would fail, or nothing would be refused."""
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    ours = received(sampling={"beam_width": 1})
    fields = vars(ours).keys() - {"sampling_params"}
    assert fields <= set(dir(TokenizedGenerateReqInput))
    assert vars(ours.sampling_params).keys() <= set(dir(SamplingParams))


def test_logprobs_of_the_answer_are_not_refused() -> None:
    validation.rewrite_request(scheduler(), received(return_logprob=True, logprob_start_len=-1), None)


@pytest.mark.parametrize(
    ("plan", "kind", "field"),
    [
        ("{", InvalidRequest, "presift"),
        ({**PLAN, "prompt_tokens": 21}, InvalidRequest, "kv_plan.prompt_tokens"),
        ({**PLAN, "protected": [[19, 21]]}, InvalidRequest, "protected_spans"),
        ({**PLAN, "protected": [[0, 6]]}, BudgetExceeded, "protected_spans"),
        ({**PLAN, "lookahead": [1, 512]}, InvalidRequest, "presift.lookahead"),
        ({**PLAN, "lookahead": [2**70]}, InvalidRequest, "presift.lookahead"),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused(plan: Any, kind: type[PresiftError], field: str) -> None:
    assert refusal_of(kind, received(plan)).field == field


@pytest.mark.parametrize("shape", [[1, 1, 20], [3, 1, 20], [1, 2, 20], [3, 2, 20], [2, 1, 20], [1, 3, 20]])
def test_a_mask_is_uniform_or_of_this_processs_model(shape: list[int]) -> None:
    import base64

    import numpy as np

    kept = np.zeros(shape, dtype=bool)
    kept[..., 12:] = True
    bits = base64.b64encode(np.packbits(kept, axis=2, bitorder="little").tobytes()).decode()
    plan = {"capacity": 8, "window": 3, "selection": "draft_mask", "kv_mask": {"shape": shape, "kept": bits}}
    if shape[0] in (1, 3) and shape[1] in (1, 2):
        request = received(plan)
        validation.rewrite_request(scheduler(), request, None)
        assert request.sampling_params.custom_params[KEY].kept == 7
    else:
        assert refusal_of(InvalidRequest, received(plan)).field == "kv_plan.kv_mask"


def test_the_context_holds_the_whole_prompt_and_the_answer() -> None:
    for plan in (PLAN, {**PLAN, "capacity": 95}, {**PLAN, "prompt_tokens": 40}):
        validation.rewrite_request(scheduler(max_req_len=999), received(plan, 60, {"max_new_tokens": 40}), None)
        refusal = refusal_of(PromptTooLong, received(plan, 60, {"max_new_tokens": 41}), scheduler(max_req_len=999))
        assert (refusal.field, refusal.value, refusal.limit) == ("input_ids", 60, "<= 59")


def test_prompt_and_lookahead_fit_a_request_of_sglangs() -> None:
    validation.rewrite_request(scheduler(max_req_len=23), received(), None)
    refusal = refusal_of(PromptTooLong, received(), scheduler(max_req_len=22))
    assert refusal.value == "22 tokens with the lookahead"


@pytest.mark.parametrize(("page_size", "needed"), [(1, 20 + 2 + 8 + 1 + 2), (4, 20 + 2 + 8 + 1 + 8)])
def test_prompt_lookahead_and_entry_fit_the_pool_together(page_size: int, needed: int) -> None:
    """SGLang admits nothing that takes the whole pool: it would stand at the head of the queue for ever."""
    validation.rewrite_request(scheduler(page_size, max_total_num_tokens=needed + 1), received(), None)
    refusal = refusal_of(PromptTooLong, received(), scheduler(page_size, max_total_num_tokens=needed))
    assert (refusal.value, refusal.limit) == (f"{needed} KV slots while scoring", f"< {needed}")


def test_a_plan_that_drops_nothing_needs_no_room() -> None:
    small = scheduler(max_req_len=9, max_total_num_tokens=9)
    request = received(tokens=8)
    validation.rewrite_request(small, request, None)
    assert isinstance(request.sampling_params.custom_params[KEY], PassthroughState)
    refusal_of(PromptTooLong, received(tokens=9), small)


def test_max_new_tokens_may_be_left_open() -> None:
    request = received(sampling={"max_new_tokens": None})
    validation.rewrite_request(scheduler(), request, None)
    # SGLang itself would fill it up to its limit by the entry's length, beyond the context.
    assert request.sampling_params.max_new_tokens <= 80


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (InvalidRequest("f", 1, 2), "InvalidRequest", 400),
        (PromptTooLong("f", 1, 2), "PromptTooLong", 400),
        (BudgetExceeded("f", 1, 2), "BudgetExceeded", 400),
        (RouteUnsupported("f", 1, 2), "RouteUnsupported", 400),
        (ZeroDivisionError("secret"), "InternalError", 500),
    ],
)
def test_a_refusal_is_an_abort_that_names_its_kind(error: Exception, kind: str, status: int) -> None:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()
    sent: list[Any] = []
    to_tokenizer = SimpleNamespace(send_output=lambda answer, request: sent.append((answer, request)))
    where = SimpleNamespace(ipc_channels=SimpleNamespace(send_to_tokenizer=to_tokenizer))
    request, ours = received(), validation.as_presift_error(error)
    validation.send_refusal(where, request, ours)
    ((answer, to),) = sent
    assert to is request and answer.rid == "r"
    expected = {"type": "abort", "status_code": status, "message": ours.message, "err_type": f"presift.{kind}"}
    assert answer.finished_reason == expected
    assert "secret" not in str(answer.finished_reason)


def test_a_presift_error_stays_unchanged() -> None:
    error = BudgetExceeded("f", 1, 2)
    assert validation.as_presift_error(error) is error
    assert type(validation.as_presift_error(KeyError("x"))) is InternalError


RENEWING = {"capacity": 8, "window": 3, "renew_every": 6, "renew_window": 4}


def test_an_answer_that_begins_on_the_full_kv_is_an_ordinary_request_at_first() -> None:
    request = received({**RENEWING, "first_full_tokens": 5}, extra_key="theirs")
    validation.rewrite_request(scheduler(), request, None)
    state = request.sampling_params.custom_params[KEY]
    assert (state.is_full, state.next_renewal, state.shift, state.kept) == (True, 5, 0, 8)
    assert (request.input_ids, request.extra_key) == (array("q", range(20)), "theirs")


@pytest.mark.parametrize(("longest", "is_full"), [(31, True), (30, False)])
def test_where_the_full_kv_does_not_fit_the_answer_begins_compressed(longest: int, is_full: bool) -> None:
    # SGLang would shorten the answer: 20 tokens of prompt, 10 of answer.
    request = received({**RENEWING, "first_full_tokens": 5})
    validation.rewrite_request(scheduler(max_req_len=longest), request, None)
    state = request.sampling_params.custom_params[KEY]
    assert (state.is_full, state.next_renewal, len(request.input_ids)) == ((True, 5, 20) if is_full else (False, 6, 9))
    # The reply says that the full KV was due and was not used.
    record = state.record_full if is_full else state.record_reuse
    record(*(0,) if is_full else (0, None))
    assert state.report is not None
    assert state.report.renewals_skipped == int(not is_full)


def test_pages_round_what_a_renewal_keeps_of_the_prompt() -> None:
    request = received({**RENEWING, "capacity": 11})
    validation.rewrite_request(scheduler(page_size=4), request, None)
    state = request.sampling_params.custom_params[KEY]
    assert (state.kept, state.next_renewal) == (8, 6)


def test_protected_spans_leave_room_for_the_window_of_a_renewal() -> None:
    refusal_of(BudgetExceeded, received({**RENEWING, "protected": [[0, 5]]}))
    validation.rewrite_request(scheduler(), received({**RENEWING, "protected": [[0, 4]]}), None)


def test_an_engine_is_its_model_its_weights_and_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    monkeypatch.undo()
    declare_missing()
    from sglang.srt import runtime_context

    monkeypatch.setattr(runtime_context, "get_serving", lambda: SimpleNamespace(weight_version="w2"))
    arguments = SimpleNamespace(model_path="/models/m", revision="r1")
    found = validation.engine_identity(SimpleNamespace(server_args=arguments))
    assert found == ("/models/m", "r1", "w2", version("sglang"), version("presift"))
