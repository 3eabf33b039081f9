"""Places in the engine: counted, bounded, given back. Requests that fit the model, and plans that can be kept."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from presift.core.errors import BudgetExceeded, FieldError, InvalidRequest, Overloaded, PromptTooLong, RouteUnsupported
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import ModelInfo, Route
from presift.core.policies import KvSelection, SpecKv
from presift.core.spans import Span
from presift.target.admission import Admission, check_fits
from presift.target.engine import EngineInfo, GenerateRequest

MODEL = ModelInfo("m", "1", "", context_tokens=100, layers=3, kv_heads=2, vocabulary_size=64)
INFO = EngineInfo("e", MODEL, tuple(Route), can_stop_at_strings=False, kv_page_tokens=4)


def test_as_many_enter_as_may_run_and_wait() -> None:
    admission = Admission(max_running=2, max_waiting=1)
    with ExitStack() as inside:
        for _ in range(3):
            inside.enter_context(admission.admit())
        with pytest.raises(Overloaded) as refusal, admission.admit():
            pass
        assert (refusal.value.value, refusal.value.limit) == (2, "<= 1")
        assert 0.1 <= refusal.value.retry_after_s <= 30.0
    with admission.admit():
        pass


def test_no_waiting_at_all() -> None:
    admission = Admission(max_running=1, max_waiting=0)
    with admission.admit(), pytest.raises(Overloaded), admission.admit():
        pass


@pytest.mark.parametrize(("is_set", "running"), [(None, 3), (2, 2), (5, 5)])
def test_the_engine_says_how_many_run_unless_it_is_set(is_set: int | None, running: int) -> None:
    admission = Admission(max_running=is_set, max_waiting=1)
    admission.use(replace(INFO, max_running=3))
    with ExitStack() as inside:
        for _ in range(running + 1):
            inside.enter_context(admission.admit())
        with pytest.raises(Overloaded), admission.admit():
            pass


def test_a_failed_request_gives_its_place_back() -> None:
    admission = Admission(max_running=1, max_waiting=0)
    with pytest.raises(RuntimeError), admission.admit():
        raise RuntimeError
    with admission.admit():
        pass


def request(plan: KvPlan | None = None, tokens: int = 40, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(np.arange(tokens, dtype=np.uint32) % 64, Sampling(**sampling), kv_plan=plan)


def plan(lookahead: tuple[int, ...] = (), **others: Any) -> KvPlan:
    return KvPlan(SpecKv(capacity=9, window=3), lookahead_token_ids=lookahead, **others)


def mask(*shape: int) -> KvMask:
    kept = np.zeros((*shape, 40), dtype=bool)
    kept[..., [0, 36, 37, 38, 39]] = True
    return KvMask(kept)


@pytest.mark.parametrize("kind", [(1, 1), (3, 2)])
def test_plans_that_fit(kind: tuple[int, int]) -> None:
    masked = SpecKv(capacity=9, window=3, selection=KvSelection.DRAFT_MASK)
    check_fits(request(plan((63, 0)), max_new_tokens=60), INFO)
    check_fits(request(KvPlan(masked, kv_mask=mask(*kind)), max_new_tokens=60), INFO)


@pytest.mark.parametrize(
    ("planned", "kind", "field", "value"),
    [
        (plan((1, 64)), InvalidRequest, "kv_plan.lookahead_token_ids", 64),
        (plan(prompt_tokens=41), InvalidRequest, "kv_plan.prompt_tokens", 41),
        (plan(protected=(Span(39, 41),)), InvalidRequest, "protected_spans", "[39, 41)"),
        (plan(protected=(Span(19, 21),), prompt_tokens=20), InvalidRequest, "protected_spans", "[19, 21)"),
        (plan(protected=(Span(0, 6),)), BudgetExceeded, "protected_spans", 9),
        (KvPlan(SpecKv(capacity=7, window=4)), InvalidRequest, "spec_kv.capacity", 7),
        *(
            (
                KvPlan(SpecKv(capacity=9, window=3, selection=KvSelection.DRAFT_MASK), kv_mask=mask(*shape)),
                InvalidRequest,
                "kv_plan.kv_mask",
                f"shape {(*shape, 40)}",
            )
            for shape in ((2, 1), (3, 3))
        ),
    ],
)
def test_a_plan_that_does_not_fit(planned: KvPlan, kind: type[FieldError], field: str, value: object) -> None:
    with pytest.raises(kind) as refusal:
        check_fits(request(planned, max_new_tokens=1), INFO)
    assert (refusal.value.field, refusal.value.value) == (field, value)


def test_the_context_holds_the_whole_prompt_and_the_answer_whatever_is_dropped() -> None:
    for kv_plan in (None, plan()):
        with pytest.raises(PromptTooLong) as refusal:
            check_fits(request(kv_plan, max_new_tokens=61), INFO)
        assert (refusal.value.value, refusal.value.limit) == (101, 100)


@pytest.mark.parametrize("reason", ["the canary failed", None])
def test_a_plan_where_no_kv_is_dropped(reason: str | None) -> None:
    unsupported = {} if reason is None else {Route.SPEC_KV: reason}
    info = replace(INFO, routes=(Route.FULL,), unsupported=unsupported)
    with pytest.raises(RouteUnsupported) as refusal:
        check_fits(request(plan(), max_new_tokens=1), info)
    assert (refusal.value.field, refusal.value.limit) == ("kv_plan", "unset")
    assert (reason or "this engine does not drop KV") in refusal.value.message
    check_fits(request(max_new_tokens=1), info)


@pytest.mark.parametrize(
    ("sampling", "tokens", "field"),
    [({"stop": ("x",)}, 40, "sampling.stop"), ({"stop_token_ids": (64,)}, 40, "sampling.stop_token_ids")],
)
def test_what_the_model_does_not_know(sampling: dict[str, Any], tokens: int, field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_fits(request(None, tokens, max_new_tokens=1, **sampling), INFO)
    assert refusal.value.field == field
    with pytest.raises(InvalidRequest, match="token_ids"):
        check_fits(GenerateRequest(np.array([64], dtype=np.uint32)), INFO)


def test_a_seed_that_the_engine_cannot_sample_by() -> None:
    info = replace(INFO, unsupported_seeds="SGLang 9 has no sampler")
    with pytest.raises(InvalidRequest, match="SGLang 9 has no sampler") as refusal:
        check_fits(request(max_new_tokens=1, temperature=0.5, seed=3), info)
    assert (refusal.value.field, refusal.value.value) == ("sampling.seed", 3)
    # A greedy answer is the same without it.
    check_fits(request(max_new_tokens=1, seed=3), info)
    check_fits(request(max_new_tokens=1, temperature=0.5), info)
    check_fits(request(max_new_tokens=1, temperature=0.5, seed=3), INFO)
