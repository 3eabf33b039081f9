"""Routes spec_kv and spec_kv_pc: their sizes, their refusals, and later turns."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest, PresiftError, PromptTooLong, RouteUnsupported
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import Route
from presift.core.policies import Adaptive, KvSelection, SpecKv, SpecKvPc
from presift.orchestrator.domain.request import AutoCapacity, Budget, KvOptions, Request, TokenIds
from presift.orchestrator.routing.choice import Reason
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.forecast import work_of
from presift.orchestrator.routing.kv_routes import continue_kv
from presift.orchestrator.routing.router import choose

from ....builders import DEFAULTS, KV, KV_PC, routing_inputs

ALL = frozenset(Route)
INPUTS = routing_inputs(state=SystemState())


def kv(wanted, base=INPUTS, **changes):
    return choose(routing_inputs(base, wanted=wanted, **changes))


def continued(**changes):
    return continue_kv(PLAN, routing_inputs(INPUTS, **changes))


def test_named_spec_kv_takes_the_default_capacity():
    choice = kv(KV)
    assert (choice.route, choice.reason, choice.keep_full_prefix) == (KV, Reason.REQUESTED, True)
    assert choice.policy == SpecKv(50, window=8, lookahead_tokens=5)
    assert "51" in choice.detail


def test_the_budget_counts_the_final_token():
    assert kv(KV, max_kv_tokens=31).policy.capacity == 30
    assert kv(KV_PC, max_kv_tokens=31).policy.kv.capacity == 30


@pytest.mark.parametrize(("page", "limit", "capacity"), [(1, 31, 30), (16, 33, 32), (16, 32, 16), (16, 64, 48)])
def test_capacity_is_whole_pages(page, limit, capacity):
    assert kv(KV, kv_page_tokens=page, max_kv_tokens=limit).policy.capacity == capacity


@pytest.mark.parametrize(("page", "limit", "least"), [(1, 9, 10), (16, 16, 17), (64, 64, 65)])
def test_a_budget_below_the_window_is_refused_with_the_minimum(page, limit, least):
    with pytest.raises(InvalidRequest) as refusal:
        kv(KV, kv_page_tokens=page, max_kv_tokens=limit)
    assert refusal.value.field == "budget.max_kv_tokens" and f">= {least} " in refusal.value.limit
    assert kv(KV, kv_page_tokens=page, max_kv_tokens=least).route is KV


def test_options_reach_the_policy():
    choice = kv(KV, lookahead_tokens=9, keep_full_prefix=False)
    assert (choice.policy.lookahead_tokens, choice.keep_full_prefix) == (9, False)
    mask = kv(KV, selection=KvSelection.DRAFT_MASK, lookahead_tokens=9).policy
    assert (mask.selection, mask.mask, mask.lookahead_tokens) == (KvSelection.DRAFT_MASK, DEFAULTS.spec_pc, 0)


def test_the_lookahead_fits_the_context():
    inputs = routing_inputs(INPUTS, prompt_tokens=1995, reserved_tokens=5)
    assert kv(KV, inputs).policy.lookahead_tokens == 3
    assert kv(KV_PC, inputs, prompt_tokens=5000).policy.kv.lookahead_tokens == 5


def test_spec_kv_pc_ignores_a_default_selection_by_the_draft():
    defaults = replace(DEFAULTS, spec_kv=replace(DEFAULTS.spec_kv, selection=KvSelection.DRAFT_MASK))
    assert kv(KV, defaults=defaults).policy.selection is KvSelection.DRAFT_MASK
    both = kv(KV_PC, defaults=defaults).policy
    assert both.kv.selection is KvSelection.TARGET_LOOKAHEAD and both.kv.mask is None


def test_cascade():
    choice = kv(KV_PC)
    assert (choice.route, choice.reason, choice.keep_full_prefix) == (KV_PC, Reason.REQUESTED, False)
    assert choice.policy == SpecKvPc(replace(DEFAULTS.spec_pc, capacity=200), DEFAULTS.spec_kv)
    assert kv(KV_PC, max_prompt_tokens=120).policy.prompt.capacity == 120
    assert kv(KV_PC, keep_full_prefix=True).keep_full_prefix is True


def test_cascade_of_a_prompt_that_fits_the_first_stage_is_spec_kv():
    choice = kv(KV_PC, max_prompt_tokens=1000)
    assert (choice.route, choice.keep_full_prefix) == (KV, True) and "1000" in choice.detail


@pytest.mark.parametrize("prompt_tokens", [700, 1000])
def test_bounds_of_auto_capacity_apply_to_the_tokens_that_a_cascade_reads(prompt_tokens):
    """The KV keeps the default capacity, as without those bounds."""
    inputs = routing_inputs(INPUTS, prompt_tokens=prompt_tokens)
    choice = kv(KV_PC, inputs, auto_capacity=AutoCapacity(0.9, min_tokens=300, max_tokens=800))
    assert choice.route is (KV if prompt_tokens == 700 else KV_PC)
    policy = choice.policy if choice.route is KV else choice.policy.kv
    assert policy.capacity == 50 and policy.adaptive == kv(KV, inputs, auto_capacity=AutoCapacity(0.9)).policy.adaptive


def test_cascade_whose_second_stage_drops_nothing_is_spec_pc():
    choice = kv(KV_PC, max_prompt_tokens=120, max_kv_tokens=120)
    assert (choice.route, choice.policy.capacity) == (Route.SPEC_PC, 120)
    assert kv(KV_PC, max_prompt_tokens=120, max_kv_tokens=119).route is KV_PC


def test_the_cascade_compresses_a_prompt_that_does_not_fit_the_context():
    assert kv(KV_PC, prompt_tokens=3000, max_prompt_tokens=1999).policy.prompt.capacity == 1950
    with pytest.raises(PromptTooLong):
        kv(KV, prompt_tokens=3000)


def test_a_prompt_budget_turns_spec_kv_into_the_cascade():
    choice = kv(KV, max_prompt_tokens=300)
    assert (choice.route, choice.policy.prompt.capacity, choice.keep_full_prefix) == (KV_PC, 300, False)
    assert "1000" in choice.detail and "300" in choice.detail


def test_a_prompt_budget_that_spec_kv_exceeds_is_named():
    for changes in ({"supported": frozenset({Route.FULL, KV})}, {"selection": KvSelection.DRAFT_MASK}):
        choice = kv(KV, max_prompt_tokens=300, **changes)
        assert choice.route is KV and "are over max_prompt_tokens 300" in choice.detail


@pytest.mark.parametrize(
    ("prompt_tokens", "budget", "reason"),
    [
        (400, {}, Reason.BELOW_THRESHOLD),
        (51, {"compress_above_tokens": 0}, Reason.WITHIN_BUDGET),
        (52, {"compress_above_tokens": 0}, Reason.REQUESTED),
        (500, {"max_kv_tokens": 500}, Reason.WITHIN_BUDGET),
        (501, {"max_kv_tokens": 500}, Reason.REQUESTED),
    ],
)
@pytest.mark.parametrize("wanted", [KV, KV_PC])
def test_reasons(wanted, prompt_tokens, budget, reason):
    assert kv(wanted, prompt_tokens=prompt_tokens, **budget).reason is reason


@pytest.mark.parametrize(("wanted", "changes"), [(KV, {"must_keep_kv": 51}), (KV_PC, {"must_keep_kv": 51}),
                                                 (KV_PC, {"must_keep": 201})])  # fmt: skip
def test_protected_over_budget(wanted, changes):
    choice = kv(wanted, **changes)
    assert (choice.route, choice.reason) == (Route.FULL, Reason.PROTECTED_OVER_BUDGET)
    at_the_budget = {name: value - 1 for name, value in changes.items()}
    choice = kv(wanted, **at_the_budget)
    assert (choice.route, choice.reason) == (wanted, Reason.ONLY_PROTECTED_KEPT)
    above = {name: value - 2 for name, value in changes.items()}
    assert kv(wanted, **above).reason is Reason.REQUESTED


# 5 of lookahead, 50 of KV and the final token, beside what is read; and two pages.
@pytest.mark.parametrize("page", [1, 10])
@pytest.mark.parametrize(("wanted", "read"), [(KV, 1000), (KV_PC, 200)])
def test_scoring_fits_the_targets_pool(wanted, read, page):
    needed = read + 5 + 50 + 1 + 2 * page
    assert kv(wanted, kv_page_tokens=page, kv_pool_tokens=needed + 1).reason is Reason.REQUESTED
    for pool in (needed, 1):
        small = routing_inputs(INPUTS, kv_page_tokens=page, kv_pool_tokens=pool)
        choice = kv(wanted, small)
        assert (choice.route, choice.reason, choice.policy) == (Route.FULL, Reason.KV_POOL_TOO_SMALL, None)
        assert f"{needed} slots" in choice.detail and f"pool has {pool}" in choice.detail
        with pytest.raises(BudgetExceeded):
            kv(wanted, small, max_kv_tokens=51, strict=True)
        assert kv(wanted, small, max_kv_tokens=51).reason is Reason.KV_POOL_TOO_SMALL


def test_an_unknown_pool_size_limits_nothing():
    assert kv(KV, kv_pool_tokens=0).reason is Reason.REQUESTED


def test_a_mask_needs_no_room_for_a_lookahead():
    for pool, reason in ((1054, Reason.REQUESTED), (1053, Reason.KV_POOL_TOO_SMALL)):
        assert kv(KV, kv_pool_tokens=pool, selection=KvSelection.DRAFT_MASK).reason is reason


REFUSED = {
    "strict prompt budget": (KV, {"max_prompt_tokens": 300, "strict": True}, {}, BudgetExceeded),
    "strict and protected": (KV, {"max_kv_tokens": 50, "strict": True}, {"must_keep_kv": 60}, BudgetExceeded),
    "strict and short": (KV, {"max_kv_tokens": 50, "strict": True}, {"prompt_tokens": 300}, BudgetExceeded),
    "too long": (KV, {}, {"prompt_tokens": 2000}, PromptTooLong),
    "no room for the prompt's window": (KV_PC, {}, {"reserved_tokens": 1995}, PromptTooLong),
    "prompt budget below the window": (KV_PC, {"max_prompt_tokens": 9}, {}, InvalidRequest),
}


@pytest.mark.parametrize(("wanted", "budget", "changes", "error"), REFUSED.values(), ids=REFUSED)
def test_refusals(wanted, budget, changes, error):
    with pytest.raises(error) as refusal:
        kv(wanted, **changes, **budget)
    assert type(refusal.value) is error and all(refusal.value.details.values())


def test_an_unserved_route_is_refused_with_the_targets_reason():
    with pytest.raises(RouteUnsupported, match=r"spec_kv .*a hook is missing.*served: full"):
        kv(KV, supported=frozenset({Route.FULL}), unsupported={KV: "a hook is missing"})


@pytest.mark.parametrize(
    ("route", "options", "field"),
    [
        (KV_PC, {"selection": KvSelection.DRAFT_MASK}, "kv.selection"),
        (KV_PC, {"continue_prompt_tokens": 5}, "kv.continue_prompt_tokens"),
        (Route.SPEC_PC, {"continue_prompt_tokens": 5}, "kv.continue_prompt_tokens"),
        (Route.FULL, {"continue_prompt_tokens": 5}, "kv.continue_prompt_tokens"),
        (KV, {"lookahead_tokens": 257}, "kv.lookahead_tokens"),
    ],
)
def test_invalid_options(route, options, field):
    with pytest.raises(InvalidRequest) as refusal:
        Request(TokenIds(np.array([1], np.uint32)), route, kv=KvOptions(**options))
    assert refusal.value.field == field


PLAN = KvPlan(SpecKv(50, window=8), prompt_tokens=600)


def test_a_later_turn_holds_the_tokens_since_the_selection():
    assert PLAN.held_tokens(1000) == 51 + 400
    assert replace(PLAN, prompt_tokens=0).held_tokens(1000) == 51
    assert replace(PLAN, prompt_tokens=40).held_tokens(100) == 100
    mask = np.zeros((1, 1, 600), dtype=bool)
    mask[..., -51:] = True
    by_mask = KvPlan(SpecKv(50, window=8, selection=KvSelection.DRAFT_MASK), kv_mask=KvMask(mask), prompt_tokens=600)
    assert by_mask.held_tokens(1000) == 51 + 400


def test_a_later_turn():
    choice = continued()
    assert (choice.route, choice.reason, choice.policy) == (KV, Reason.REQUESTED, PLAN.policy)
    assert choice.detail == "continues the selection of 600 tokens" and choice.keep_full_prefix is True
    assert continued(keep_full_prefix=False).keep_full_prefix is False


@pytest.mark.parametrize("entries", [{PLAN.policy}, {replace(PLAN.policy, capacity=90, adaptive=Adaptive(0.9, 20))}])
def test_a_later_turn_is_predicted_by_the_tokens_since_the_selection(entries):
    choice = continued()
    held, gone = work_of(choice, 1000, SystemState(entries=frozenset(entries))), work_of(choice, 1000, SystemState())
    assert (held.target.past_tokens, held.target.new_tokens, held.selection) == (50, 401, None)
    assert gone.target.new_tokens == 1000 + PLAN.policy.lookahead_tokens and gone.selection is not None
    for work in (held, gone):
        assert (work.read_tokens, work.kv_tokens, work.draft, work.prefill) == (1000, 451, None, None)
    other = SystemState(entries=frozenset({replace(PLAN.policy, capacity=60)}))
    assert work_of(choice, 1000, other).selection is not None


@pytest.mark.parametrize(("name", "value"), [("max_kv_tokens", 451), ("max_prompt_tokens", 1000)])
def test_a_later_turn_keeps_a_strict_budget(name, value):
    assert "over" not in continued(strict=True, **{name: value}).detail
    assert f"over {name}" in continued(**{name: value - 1}).detail
    with pytest.raises(BudgetExceeded) as refusal:
        continued(strict=True, **{name: value - 1})
    assert refusal.value.field == f"budget.{name}"


def test_a_later_turn_must_fit_the_context():
    with pytest.raises(PromptTooLong):
        continued(prompt_tokens=2000)


@given(
    wanted=st.sampled_from([KV, KV_PC]),
    budget=st.builds(
        Budget,
        max_prompt_tokens=st.none() | st.integers(1, 300),
        max_kv_tokens=st.none() | st.integers(1, 300),
        strict=st.booleans(),
        compress_above_tokens=st.none() | st.integers(0, 300),
    ),
    options=st.builds(
        KvOptions, selection=st.none() | st.sampled_from(KvSelection), lookahead_tokens=st.none() | st.integers(0, 256)
    ),
    inputs=st.integers(1, 300).flatmap(
        lambda n: st.builds(
            partial(replace, INPUTS),
            prompt_tokens=st.just(n),
            must_keep=st.integers(min(n, 10), n),
            must_keep_kv=st.integers(min(n - 1, 8), n - 1),
            reserved_tokens=st.integers(1, 300),
            context_tokens=st.integers(1, 400),
            supported=st.sampled_from([ALL, frozenset({Route.FULL, Route.SPEC_PC})]),
            kv_page_tokens=st.sampled_from([1, 16]),
            kv_pool_tokens=st.sampled_from([0, 1000]) | st.integers(1, 400),
        )
    ),
)
def test_whatever_is_chosen_holds(wanted, budget, options, inputs):
    defaults = replace(DEFAULTS, compress_above_tokens=60, cascade_capacity=90)
    inputs = replace(inputs, wanted=wanted, budget=budget, options=options, defaults=defaults)
    try:
        choice = choose(inputs)
    except PresiftError:
        return
    assert choice.route in inputs.supported
    read, policy = inputs.prompt_tokens, choice.policy
    if choice.route in (Route.SPEC_PC, KV_PC):
        prompt = policy if choice.route is Route.SPEC_PC else policy.prompt
        read = prompt.capacity
        assert inputs.must_keep <= read < inputs.prompt_tokens
        assert budget.max_prompt_tokens is None or read <= budget.max_prompt_tokens
    reads_all = choice.route in (KV, Route.FULL)
    assert read <= (inputs.context_tokens - inputs.least_new_tokens if reads_all else inputs.room)
    held = read
    if choice.route in (KV, KV_PC):
        spec = policy if choice.route is KV else policy.kv
        held = spec.capacity + 1
        assert inputs.must_keep_kv <= spec.capacity < read - 1 or choice.route is KV_PC
        assert spec.capacity % inputs.kv_page_tokens == 0 and held < read + inputs.kv_page_tokens
        assert choice.keep_full_prefix is (choice.route is KV)
        slots = read + spec.lookahead_tokens + spec.capacity + 1 + 2 * inputs.kv_page_tokens
        assert slots < inputs.kv_pool_tokens or not inputs.kv_pool_tokens
    if budget.max_kv_tokens is not None and (budget.strict or choice.route is not Route.FULL):
        assert held <= budget.max_kv_tokens
    if budget.strict and budget.max_prompt_tokens is not None:
        assert read <= budget.max_prompt_tokens
