"""Predicted costs of the work of each route."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.plan import Route
from presift.core.policies import KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import (
    SELECTION_SEED,
    TARGET_SEED,
    CostCurve,
    QueuedWork,
    RouteWork,
    StageCosts,
    SystemState,
    TokenWork,
    selection_guess,
)
from presift.orchestrator.routing.forecast import work_of

# A draft of 1 ms a token and 5 a step, a target of 10 a token, scoring of 1 a million pairs.
COSTS = StageCosts(
    draft=CostCurve(0.0, 1.0, 0.0, 5.0, observations=1),
    target=CostCurve(0.0, 10.0, 0.0, observations=1),
    selection=CostCurve(0.0, 0.0, 1.0, observations=1),
    decoding=CostCurve(2.0, 0.5, 0.0),
)
PC, KV = SpecPc(100, window=10, lookahead_tokens=3), SpecKv(49, window=8, lookahead_tokens=4)


def work(policy, route, tokens=1000, state=None, keep=True):
    return work_of(RouteChoice(route, Reason.REQUESTED, "", policy, keep), tokens, state or SystemState())


def test_a_curve_by_hand():
    curve = CostCurve(call_ms=1.0, token_ms=2.0, megapair_ms=1e6, step_ms=7.0)
    assert curve.ms(TokenWork(3)) == 1 + 6 + 4.5
    assert curve.ms(TokenWork(3, past_tokens=10, steps=2)) == 1 + 6 + 34.5 + 14


def test_the_work_of_every_route():
    assert work(None, Route.FULL) == RouteWork(TokenWork(1000), 1000, 1000)
    assert work(PC, Route.SPEC_PC) == RouteWork(TokenWork(100), 100, 100, draft=TokenWork(1000, steps=2))
    assert work(KV, Route.SPEC_KV) == RouteWork(
        TokenWork(1004), 1000, 50, draft=TokenWork(1000, steps=4), selection=TokenWork(12, 1000)
    )
    assert work(SpecKvPc(replace(PC, capacity=200), KV), Route.SPEC_KV_PC) == RouteWork(
        TokenWork(204), 200, 50, draft=TokenWork(1000, steps=4), selection=TokenWork(12, 200)
    )


def test_a_mask_needs_neither_scoring_nor_lookahead():
    policy = replace(KV, selection=KvSelection.DRAFT_MASK, lookahead_tokens=0, mask=PC)
    assert work(policy, Route.SPEC_KV) == RouteWork(TokenWork(1000), 1000, 50, draft=TokenWork(1000, steps=2))


def test_cached_tokens_are_not_read_except_the_final_one():
    warm = SystemState(cached_tokens=960)
    assert work(None, Route.FULL, state=warm).target == TokenWork(40, 960)
    assert work(KV, Route.SPEC_KV, state=warm).target == TokenWork(44, 960)
    assert work(PC, Route.SPEC_PC, state=warm).target == TokenWork(100)
    assert work(None, Route.FULL, tokens=960, state=warm).target == TokenWork(1, 959)


def test_a_cached_compressed_prompt_needs_no_draft():
    known = SystemState(compressed=((PC, 64),))
    assert work(PC, Route.SPEC_PC, state=known) == RouteWork(TokenWork(36, 64), 100, 100)
    assert work(replace(PC, capacity=101), Route.SPEC_PC, state=known).draft is not None


def test_the_target_prefills_the_draft_only_if_the_prefix_stays():
    state = SystemState(prefills=True)
    both = work(KV, Route.SPEC_KV, state=state)
    assert (both.prefill, both.target) == (TokenWork(1000), TokenWork(5, 999))
    assert work(KV, Route.SPEC_KV, state=state, keep=False).prefill is None
    known = SystemState(prefills=True, compressed=((KV, 0),))
    assert work(KV, Route.SPEC_KV, state=known).prefill is None


def test_forecasts_by_hand():
    state = SystemState(COSTS)
    assert state.forecast(work(None, Route.FULL)).ttft_ms == 10_000
    compressed = state.forecast(work(PC, Route.SPEC_PC))
    assert (compressed.draft_ms, compressed.target_ms, compressed.ttft_ms) == (1010, 1000, 2010)
    assert (compressed.read_tokens, compressed.kv_tokens, compressed.step_ms) == (100, 100, 52)
    scored = state.forecast(work(KV, Route.SPEC_KV))
    assert scored.ttft_ms == pytest.approx(1020 + 10_040 + 12 * 1006 / 1e6)


@pytest.mark.parametrize(("contention", "first_ms"), [(0.0, 10_000), (0.5, 10_510), (1.0, 11_020)])
def test_contention_is_the_share_of_the_shorter_work_that_is_not_hidden(contention, first_ms):
    state = SystemState(replace(COSTS, contention=contention), prefills=True)
    found = state.forecast(replace(work(KV, Route.SPEC_KV, state=state), selection=None))
    assert found.ttft_ms == first_ms + 50


def test_queued_work_and_spent_time_are_added():
    idle, busy = SystemState(COSTS), SystemState(COSTS, QueuedWork(draft_ms=3, target_ms=20, spent_ms=100))
    for policy, route in ((None, Route.FULL), (PC, Route.SPEC_PC)):
        before, after = (each.forecast(work(policy, route)) for each in (idle, busy))
        assert after.ttft_ms - before.ttft_ms == 120 + (3 if policy else 0)


def test_unobserved_stages_do_not_count_in_the_least_time():
    unknown = SystemState(replace(COSTS, draft=replace(COSTS.draft, observations=0)))
    assert unknown.forecast(work(PC, Route.SPEC_PC)).least_ms == 1000
    assert SystemState(COSTS).forecast(work(PC, Route.SPEC_PC)).least_ms == 2010
    slow = replace(COSTS, selection=replace(COSTS.selection, megapair_ms=1e9, observations=1))
    guessed = replace(slow, selection=replace(slow.selection, observations=0))
    measured, unmeasured = (SystemState(costs).forecast(work(KV, Route.SPEC_KV)) for costs in (slow, guessed))
    assert unmeasured.ttft_ms == measured.ttft_ms == measured.least_ms
    assert unmeasured.least_ms == pytest.approx(1020 + 10_040)


def test_the_guess_of_scoring_follows_the_target():
    assert selection_guess(TARGET_SEED) == SELECTION_SEED
    fast = replace(TARGET_SEED.scaled(1 / 50), observations=3)
    reading = TokenWork(40, 8000)
    assert selection_guess(fast).ms(reading) == pytest.approx(SELECTION_SEED.ms(reading) / 50)
    assert selection_guess(fast).observations == 0 and fast.scaled(2.0).observations == 3


@pytest.mark.parametrize("prefills", [False, True])
def test_work_excludes_waiting(prefills):
    idle, busy = (
        SystemState(COSTS, queued, prefills=prefills) for queued in (QueuedWork(), QueuedWork(300.0, 2000.0, 10.0))
    )
    for policy, route in ((None, Route.FULL), (PC, Route.SPEC_PC), (KV, Route.SPEC_KV)):
        before, after = (each.forecast(work(policy, route, state=each)) for each in (idle, busy))
        works = after.draft_work_ms, after.prefill_work_ms, after.target_work_ms
        assert works == pytest.approx((before.draft_ms, before.prefill_work_ms, before.target_ms - works[1]))
        assert after.draft_ms == before.draft_ms + (300 if policy else 0)
    assert before.prefill_work_ms == (10_000 if prefills else 0)


@given(st.integers(1, 50_000), st.integers(0, 50_000), st.integers(0, 50_000))
def test_more_cached_tokens_are_never_slower_and_longer_prompts_never_faster(tokens, cached, more):
    def ttft_ms(tokens, cached):
        state = SystemState(cached_tokens=cached)
        return state.forecast(work(None, Route.FULL, tokens, state)).ttft_ms

    assert ttft_ms(tokens, cached + more) <= ttft_ms(tokens, cached) + 1e-6
    assert ttft_ms(tokens + more, cached) >= ttft_ms(tokens, cached) - 1e-6


def test_with_a_compressed_entry_only_the_final_token_is_read():
    """The target reads one token after the 49 kept; there is no draft, no selection and no prefill."""
    known = SystemState(COSTS, compressed=((KV, 0),), entries=frozenset({KV}), prefills=True)
    assert work(KV, Route.SPEC_KV, state=known) == RouteWork(TokenWork(1, 49), 1000, 50)
    assert known.forecast(work(KV, Route.SPEC_KV, state=known)).ttft_ms == 10
    both = SpecKvPc(replace(PC, capacity=200), KV)
    held = SystemState(compressed=((both, 0),), entries=frozenset({both}))
    assert work(both, Route.SPEC_KV_PC, state=held) == RouteWork(TokenWork(1, 49), 200, 50)
    assert work(replace(KV, capacity=60), Route.SPEC_KV, state=known).selection is not None
