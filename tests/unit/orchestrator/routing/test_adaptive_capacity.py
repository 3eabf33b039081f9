"""Adaptive capacities: the bounds requested from the draft, the answers it may give, and the decision's text."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest, PresiftError
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, Route
from presift.core.policies import Adaptive, KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.core.spans import Span
from presift.orchestrator.domain.ports import MaskRejected
from presift.orchestrator.domain.request import AutoCapacity, TokenizedPrompt
from presift.orchestrator.planning.compressor import CompressionResult
from presift.orchestrator.planning.draft_stage import DraftResult
from presift.orchestrator.planning.mask_validation import ScoringJob, check_prompt
from presift.orchestrator.planning.plan_builder import compressed_plan
from presift.orchestrator.routing.adaptive_capacity import capacity_text, measured_at
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.decision import CacheOutcome
from presift.orchestrator.routing.forecast import draft_work
from presift.orchestrator.routing.router import choose

from ....builders import DEFAULTS, KV, KV_PC, MODEL, PC, request_context, routing_inputs

INPUTS = routing_inputs(must_keep=12, must_keep_kv=11, state=SystemState())


def routed(route, base=INPUTS, auto=None, **changes):
    auto_capacity = None if auto is None else AutoCapacity(*auto)
    return choose(routing_inputs(base, wanted=route, auto_capacity=auto_capacity, **changes))


@pytest.mark.parametrize(
    ("auto", "budget", "least", "most"),
    [
        ((0.9,), {}, 16, 100),
        ((0.9, 40), {}, 40, 100),
        ((0.9, 40, 300), {}, 40, 300),
        ((0.9, None, 300), {"max_prompt_tokens": 250}, 16, 250),
        ((0.9, None, 60), {"max_prompt_tokens": 250}, 16, 60),
        ((0.9, None, 60), {"max_kv_tokens": 50}, 16, 50),
        ((0.9, 40), {"max_prompt_tokens": 30}, 30, 30),
        ((0.9, 3), {}, 10, 100),
    ],
)
def test_the_bounds_of_a_prompt(auto, budget, least, most):
    choice = routed(PC, auto=auto, **budget)
    assert choice.policy == SpecPc(most, window=10, adaptive=Adaptive(0.9, least))
    assert f"up to {most}" in choice.detail and choice.forecast.read_tokens == most


@pytest.mark.parametrize(
    ("auto", "budget", "page", "least", "most"),
    [
        ((0.9,), {}, 1, 16, 50),
        ((0.9, 31), {}, 1, 30, 50),
        ((0.9, 31, 101), {}, 1, 30, 100),
        ((0.9, None, 101), {"max_kv_tokens": 81}, 1, 16, 80),
        ((0.9, None, 31), {"max_kv_tokens": 81}, 1, 16, 30),
        ((0.9, 31), {}, 8, 32, 48),
        ((0.9, 60), {}, 16, 48, 48),
        ((0.9, 3), {}, 4, 12, 48),
    ],
)
@pytest.mark.parametrize("selection", KvSelection)
def test_the_bounds_of_kv(selection, auto, budget, page, least, most):  # noqa: PLR0917
    policy = routed(KV, kv_page_tokens=page, auto=auto, selection=selection, **budget).policy
    assert (policy.capacity, policy.adaptive) == (most, Adaptive(0.9, least, page))
    assert policy.mask == DEFAULTS.spec_pc  # the draft counts by it, whoever selects


def test_the_callers_bounds_of_a_cascade_apply_to_the_tokens_read():
    policy = routed(KV_PC, auto=(0.9, 70, 90)).policy
    assert (policy.prompt.capacity, policy.prompt.adaptive) == (90, Adaptive(0.9, 70))
    assert (policy.kv.capacity, policy.kv.adaptive, policy.kv.mask) == (50, Adaptive(0.9, 16), None)


def test_the_deployments_setting_is_the_default():
    defaults = replace(DEFAULTS, auto_capacity=AutoCapacity(0.5))
    assert routed(PC, defaults=defaults).policy.adaptive == Adaptive(0.5, 16)
    assert routed(PC, defaults=defaults, auto=(0.8,)).policy.adaptive == Adaptive(0.8, 16)
    assert routed(PC).policy.adaptive is None


def test_min_coverage_raises_the_requested_coverage():
    assert routed(PC, auto=(0.5,), min_coverage=0.75).policy.adaptive.coverage == 0.75
    assert routed(PC, auto=(0.75,), min_coverage=0.5).policy.adaptive.coverage == 0.75
    assert routed(PC, min_coverage=0.5).policy.adaptive is None


def test_min_coverage_of_kv_is_measured_at_the_fixed_capacity():
    for page, most in ((1, 50), (16, 48)):
        inputs = routing_inputs(INPUTS, kv_page_tokens=page)
        plain, measured = routed(KV, inputs), routed(KV, inputs, min_coverage=0.5)
        assert measured.policy == replace(plain.policy, mask=DEFAULTS.spec_pc, adaptive=Adaptive(1.0, most, page))
        assert measured.detail == plain.detail  # nothing is "up to"
        cascade = routed(KV_PC, inputs, min_coverage=0.5).policy
        assert (cascade.prompt.adaptive, cascade.kv.adaptive) == (None, Adaptive(1.0, most, page))
    by_mask = KvSelection.DRAFT_MASK
    required = routed(KV, selection=by_mask, min_coverage=0.5)
    assert required == routed(KV, selection=by_mask)


def test_protected_spans_raise_only_the_default_bound():
    assert routed(PC, must_keep=50, auto=(0.9,)).policy.adaptive.min_capacity == 64
    assert routed(PC, must_keep=50, auto=(0.9, 20)).policy.adaptive.min_capacity == 20
    assert routed(PC, must_keep=101, auto=(0.9,)).reason is Reason.PROTECTED_OVER_BUDGET


@pytest.mark.parametrize(
    ("auto", "field"),
    [
        ((0.0,), "coverage"),
        ((1.5,), "coverage"),
        ((float("nan"),), "coverage"),
        ((0.5, 0), "min_tokens"),
        ((0.5, None, 0), "max_tokens"),
        ((0.5, 10, 9), "min_tokens"),
    ],
)
def test_invalid_bounds(auto, field):
    with pytest.raises(InvalidRequest) as refusal:
        AutoCapacity(*auto)
    assert refusal.value.field == f"budget.auto_capacity.{field}"


@pytest.mark.parametrize(
    ("limits", "field"), [({}, "auto_capacity.max_tokens"), ({"max_kv_tokens": 7}, "max_kv_tokens")]
)
def test_a_bound_below_the_window_is_refused_by_name(limits, field):
    with pytest.raises(InvalidRequest) as refusal:
        routed(KV, auto=(0.5, None, 9), **limits)
    assert refusal.value.field == f"budget.{field}"


def test_auto_uses_the_callers_upper_bound_instead_of_the_default_one():
    choice = routed(None, auto=(0.9, None, 300))
    assert (choice.route, choice.policy.capacity, choice.reason) == (PC, 300, Reason.OVER_BUDGET)
    assert "keeps up to 300" in choice.detail


maybe = st.none() | st.integers(1, 400)
limits_of = st.fixed_dictionaries({"max_prompt_tokens": maybe, "max_kv_tokens": maybe})


@given(st.sampled_from([None, PC, KV, KV_PC]), maybe, maybe, limits_of, st.sampled_from([1, 4, 16]))
def test_no_upper_bound_is_over_a_limit(route, least, most, limits, page):
    if least is not None and most is not None and least > most:
        least, most = most, least
    max_prompt_tokens, max_kv_tokens = limits["max_prompt_tokens"], limits["max_kv_tokens"]
    inputs = routing_inputs(INPUTS, kv_page_tokens=page)
    try:
        plain = routed(route, inputs, **limits)
        choice = routed(route, inputs, auto=(0.9, least, most), **limits)
    except PresiftError:
        return
    forecast = choice.forecast
    if choice.route not in (Route.FULL, KV) and max_prompt_tokens is not None:
        assert forecast.read_tokens <= max_prompt_tokens
    if choice.route is not Route.FULL and max_kv_tokens is not None:
        assert forecast.kv_tokens <= max_kv_tokens
    if most is None:
        assert (choice.route, forecast.read_tokens, forecast.kv_tokens) == (
            plain.route,
            plain.forecast.read_tokens,
            plain.forecast.kv_tokens,
        )


def test_scoring_for_the_coverage_is_part_of_the_drafts_work():
    mask = SpecPc(50, lookahead_tokens=9)
    assert draft_work(SpecKv(50, lookahead_tokens=5, mask=mask), 1000).steps == 5
    assert draft_work(SpecKv(50, lookahead_tokens=5, mask=mask, adaptive=Adaptive(0.9, 40)), 1000).steps == 8


TOKENS = TokenizedPrompt(np.arange(100, dtype=np.uint32), (Span(0, 6),))
AUTO = {"adaptive": Adaptive(0.9, 20, 4)}
BY_PC, BY_TARGET = SpecPc(40, window=8, **AUTO), SpecKv(40, window=8, lookahead_tokens=2, **AUTO)
MEASURED = replace(BY_TARGET, adaptive=measured_at(40, 4))
BY_MASK = replace(BY_TARGET, selection=KvSelection.DRAFT_MASK)


def answer(kept=100, kv_capacity=None, coverage=None, kv_coverage=None):
    """The first tokens and the last nine, so many in all."""
    flags = np.zeros(100, dtype=bool)
    flags[: kept - 9] = flags[91:] = True
    return CompressedPrompt(TokenMask(flags), (), coverage, MODEL, kv_capacity, kv_coverage)


def accepted(policy, prompt):
    try:
        check_prompt(prompt, ScoringJob(TOKENS, policy, MODEL, MODEL))
    except MaskRejected:
        return False
    return True


def test_a_mask_has_a_size_between_the_bounds():
    assert [size for size in range(15, 50) if accepted(BY_PC, answer(size))] == [20, 24, 28, 32, 36, 40]
    assert [size for size in range(15, 50) if accepted(BY_MASK, answer(size))] == [21, 25, 29, 33, 37, 41]


def test_a_kv_capacity_lies_between_the_bounds():
    assert [size for size in range(1, 50) if accepted(BY_TARGET, answer(100, size))] == [20, 24, 28, 32, 36, 40]
    assert accepted(BY_TARGET, answer(100))  # an older draft reports none


@pytest.mark.parametrize("policy", [BY_PC, BY_MASK, replace(BY_TARGET, adaptive=None)])
def test_a_kv_capacity_that_was_not_requested_is_rejected(policy):
    size = 100 if policy.adaptive is None else 41 if policy is BY_MASK else 40
    assert accepted(policy, answer(size)) and not accepted(policy, answer(size, 24))


def test_a_kv_capacity_below_the_protected_tokens_is_rejected():
    tight = replace(TOKENS, protected=(Span(0, 16),))
    for policy, prompt in ((BY_TARGET, answer(100, 20)), (SpecKvPc(SpecPc(60, window=8), BY_TARGET), answer(60, 20))):
        with pytest.raises(MaskRejected, match="window and protected spans need 24"):
            check_prompt(prompt, ScoringJob(tight, policy, MODEL, MODEL))
        check_prompt(replace(prompt, kv_capacity=24), ScoringJob(tight, policy, MODEL, MODEL))


def planned(route, policy, prompt):
    choice = RouteChoice(route, Reason.REQUESTED, "requested", policy, True)
    context = request_context(TOKENS.ids, TOKENS.protected)
    result = DraftResult(choice, CompressionResult(prompt, CacheOutcome.MISS, 1.0, 1.0))
    return compressed_plan(context, result)


@pytest.mark.parametrize(
    ("route", "policy", "prompt", "read", "held"),
    [
        (PC, BY_PC, answer(24), 24, 24),
        (KV, BY_TARGET, answer(100, 28), 100, 29),
        (KV, BY_TARGET, answer(100), 100, 41),
        (KV, BY_MASK, answer(29), 100, 29),
        (KV_PC, SpecKvPc(SpecPc(60, window=8), BY_TARGET), answer(60, 28), 60, 29),
        (KV_PC, SpecKvPc(replace(BY_PC, capacity=60), BY_TARGET), answer(36), 36, 36),
    ],
)
def test_the_plan_has_the_capacities_that_the_draft_chose(route, policy, prompt, read, held):
    plan = planned(route, policy, prompt)
    assert (plan.decision.kept_tokens, plan.decision.kv_tokens, plan.read_ids.size) == (read, held, read)
    assert plan.decision.policy == policy  # by which the cached compressed prompt is found
    if plan.kv_plan is not None:
        assert (plan.kv_plan.policy.capacity, plan.kv_plan.policy.adaptive) == (held - 1, None)
    else:
        assert read == held


@pytest.mark.parametrize(
    ("policy", "prompt", "text"),
    [
        (replace(BY_PC, capacity=1040), answer(24, None, 0.93), "24 tokens reach coverage 0.9"),
        (BY_PC, answer(40, None, 0.5), "40 tokens cover 0.500 of the requested 0.9"),
        (BY_PC, answer(40, None, float(np.float32(0.9))), "40 tokens reach coverage 0.9"),
        (BY_MASK, answer(29, None, 0.93), "28 KV tokens reach coverage 0.9"),
        (BY_TARGET, answer(100, 28), "28 KV tokens reach coverage 0.9 by the draft's estimate"),
        (BY_TARGET, answer(100, 40), "fewer than 40 KV tokens do not reach coverage 0.9 by the draft's estimate"),
        (BY_TARGET, answer(100), "the draft did not report how many KV tokens reach coverage 0.9"),
        (BY_TARGET, answer(100, 40, None, 0.95), "40 KV tokens reach coverage 0.9 by the draft's estimate"),
        (
            BY_TARGET,
            answer(100, 40, None, 0.7),
            "40 KV tokens cover 0.700 of the requested 0.9 by the draft's estimate",
        ),
        (MEASURED, answer(100, 40, None, 0.7), "40 KV tokens cover 0.700 by the draft's estimate"),
        (SpecKvPc(SpecPc(60, window=8), BY_TARGET), answer(41), ""),
    ],
)
def test_the_outcome_in_words(policy, prompt, text):
    assert capacity_text(policy, prompt) == text


def test_of_both_stages_of_a_cascade_the_one_that_falls_short_is_named():
    cascade = SpecKvPc(BY_PC, replace(BY_TARGET, capacity=22))
    assert capacity_text(cascade, answer(24, 20, 0.93)) == "24 tokens reach coverage 0.9"
    assert (
        capacity_text(cascade, answer(24, 22, 0.93))
        == "fewer than 22 KV tokens do not reach coverage 0.9 by the draft's estimate"
    )
    assert capacity_text(SpecKvPc(SpecPc(60), SpecKv(40)), answer(60)) == capacity_text(SpecPc(40), answer(40)) == ""
