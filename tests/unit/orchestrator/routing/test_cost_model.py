"""What a route's work is predicted to take."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.plan import Route
from presift.core.policies import KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import (
    SCORING_SEED,
    TARGET_SEED,
    CostCurve,
    QueuedWork,
    RouteWork,
    StageCosts,
    SystemState,
    TokenWork,
    scoring_guess,
)
from presift.orchestrator.routing.forecast import work_of

# A draft of 1 ms a token and 5 a step, a target of 10 a token, scoring of 1 a million pairs.
SPEEDS = StageCosts(
    draft=CostCurve(0.0, 1.0, 0.0, 5.0, observations=1),
    target=CostCurve(0.0, 10.0, 0.0, observations=1),
    scoring=CostCurve(0.0, 0.0, 1.0, observations=1),
    decoding=CostCurve(2.0, 0.5, 0.0),
)
PC, KV = SpecPc(100, window=10, lookahead_tokens=3), SpecKv(49, window=8, lookahead_tokens=4)


def work(policy, route, tokens=1000, outlook=None, keep=True):
    return work_of(RouteChoice(route, Reason.REQUESTED, "", policy, keep), tokens, outlook or SystemState())


def test_a_curve_by_hand():
    curve = CostCurve(call_ms=1.0, token_ms=2.0, megapair_ms=1e6, step_ms=7.0)
    assert curve.ms(TokenWork(3)) == 1 + 6 + 4.5
    assert curve.ms(TokenWork(3, past_tokens=10, steps=2)) == 1 + 6 + 34.5 + 14


def test_the_work_of_every_route():
    assert work(None, Route.FULL) == RouteWork(TokenWork(1000), 1000, 1000)
    assert work(PC, Route.SPEC_PC) == RouteWork(TokenWork(100), 100, 100, draft=TokenWork(1000, steps=2))
    assert work(KV, Route.SPEC_KV) == RouteWork(
        TokenWork(1004), 1000, 50, draft=TokenWork(1000, steps=4), scoring=TokenWork(12, 1000)
    )
    assert work(SpecKvPc(replace(PC, capacity=200), KV), Route.SPEC_KV_PC) == RouteWork(
        TokenWork(204), 200, 50, draft=TokenWork(1000, steps=4), scoring=TokenWork(12, 200)
    )


def test_a_mask_is_neither_scored_nor_does_it_look_ahead():
    policy = replace(KV, selection=KvSelection.DRAFT_MASK, lookahead_tokens=0, mask=PC)
    assert work(policy, Route.SPEC_KV) == RouteWork(TokenWork(1000), 1000, 50, draft=TokenWork(1000, steps=2))


def test_what_is_cached_is_not_read_but_for_the_final_token():
    warm = SystemState(cached_tokens=960)
    assert work(None, Route.FULL, outlook=warm).target == TokenWork(40, 960)
    assert work(KV, Route.SPEC_KV, outlook=warm).target == TokenWork(44, 960)
    assert work(PC, Route.SPEC_PC, outlook=warm).target == TokenWork(100)
    assert work(None, Route.FULL, tokens=960, outlook=warm).target == TokenWork(1, 959)


def test_what_is_compressed_already_needs_no_draft():
    known = SystemState(compressed=((PC.canonical(), 64),))
    assert work(replace(PC, start_layer=3), Route.SPEC_PC, outlook=known) == RouteWork(TokenWork(36, 64), 100, 100)
    assert work(replace(PC, capacity=101), Route.SPEC_PC, outlook=known).draft is not None


def test_the_target_reads_beside_the_draft_only_if_the_prefix_stays():
    outlook = SystemState(reads_beside=True)
    both = work(KV, Route.SPEC_KV, outlook=outlook)
    assert (both.beside, both.target) == (TokenWork(1000), TokenWork(5, 999))
    assert work(KV, Route.SPEC_KV, outlook=outlook, keep=False).beside is None
    known = SystemState(reads_beside=True, compressed=((KV.canonical(), 0),))
    assert work(KV, Route.SPEC_KV, outlook=known).beside is None


def test_forecasts_by_hand():
    outlook = SystemState(SPEEDS)
    assert outlook.forecast(work(None, Route.FULL)).ttft_ms == 10_000
    compressed = outlook.forecast(work(PC, Route.SPEC_PC))
    assert (compressed.draft_ms, compressed.target_ms, compressed.ttft_ms) == (1010, 1000, 2010)
    assert (compressed.read_tokens, compressed.kv_tokens, compressed.step_ms) == (100, 100, 52)
    scored = outlook.forecast(work(KV, Route.SPEC_KV))
    assert scored.ttft_ms == pytest.approx(1020 + 10_040 + 12 * 1006 / 1e6)


@pytest.mark.parametrize(("contention", "first_ms"), [(0.0, 10_000), (0.5, 10_510), (1.0, 11_020)])
def test_side_by_side_the_longer_hides_what_is_not_contended(contention, first_ms):
    outlook = SystemState(replace(SPEEDS, contention=contention), reads_beside=True)
    found = outlook.forecast(replace(work(KV, Route.SPEC_KV, outlook=outlook), scoring=None))
    assert found.ttft_ms == first_ms + 50


def test_waiting_and_what_was_spent_come_on_top():
    idle, busy = SystemState(SPEEDS), SystemState(SPEEDS, QueuedWork(draft_ms=3, target_ms=20, spent_ms=100))
    for policy, route in ((None, Route.FULL), (PC, Route.SPEC_PC)):
        before, after = (each.forecast(work(policy, route)) for each in (idle, busy))
        assert after.ttft_ms - before.ttft_ms == 120 + (3 if policy else 0)


def test_what_was_never_measured_is_not_held_against_a_route():
    unknown = SystemState(replace(SPEEDS, draft=replace(SPEEDS.draft, observations=0)))
    assert unknown.forecast(work(PC, Route.SPEC_PC)).least_ms == 1000
    assert SystemState(SPEEDS).forecast(work(PC, Route.SPEC_PC)).least_ms == 2010
    slow = replace(SPEEDS, scoring=replace(SPEEDS.scoring, megapair_ms=1e9, observations=1))
    guessed = replace(slow, scoring=replace(slow.scoring, observations=0))
    measured, unmeasured = (SystemState(speeds).forecast(work(KV, Route.SPEC_KV)) for speeds in (slow, guessed))
    assert unmeasured.ttft_ms == measured.ttft_ms == measured.least_ms
    assert unmeasured.least_ms == pytest.approx(1020 + 10_040)


def test_the_guess_of_scoring_follows_the_target():
    assert scoring_guess(TARGET_SEED) == SCORING_SEED
    fast = replace(TARGET_SEED.slower(1 / 50), observations=3)
    reading = TokenWork(40, 8000)
    assert scoring_guess(fast).ms(reading) == pytest.approx(SCORING_SEED.ms(reading) / 50)
    assert scoring_guess(fast).observations == 0 and fast.slower(2.0).observations == 3


@pytest.mark.parametrize("reads_beside", [False, True])
def test_work_is_what_is_left_without_the_wait(reads_beside):
    idle, busy = (
        SystemState(SPEEDS, load, reads_beside=reads_beside) for load in (QueuedWork(), QueuedWork(300.0, 2000.0, 10.0))
    )
    for policy, route in ((None, Route.FULL), (PC, Route.SPEC_PC), (KV, Route.SPEC_KV)):
        before, after = (each.forecast(work(policy, route, outlook=each)) for each in (idle, busy))
        works = after.draft_work_ms, after.beside_work_ms, after.target_work_ms
        assert works == pytest.approx((before.draft_ms, before.beside_work_ms, before.target_ms - works[1]))
        assert after.draft_ms == before.draft_ms + (300 if policy else 0)
    assert before.beside_work_ms == (10_000 if reads_beside else 0)


@given(st.integers(1, 50_000), st.integers(0, 50_000), st.integers(0, 50_000))
def test_more_in_the_cache_is_never_later_and_a_longer_prompt_never_sooner(tokens, cached, more):
    def ttft_ms(tokens, cached):
        outlook = SystemState(cached_tokens=cached)
        return outlook.forecast(work(None, Route.FULL, tokens, outlook)).ttft_ms

    assert ttft_ms(tokens, cached + more) <= ttft_ms(tokens, cached) + 1e-6
    assert ttft_ms(tokens + more, cached) >= ttft_ms(tokens, cached) - 1e-6


def test_of_an_entry_only_the_final_token_is_read():
    """The target reads one token behind the 49 kept; nothing is drafted, chosen or read beside."""
    known = SystemState(
        SPEEDS, compressed=((KV.canonical(), 0),), entries=frozenset({KV.canonical()}), reads_beside=True
    )
    assert work(KV, Route.SPEC_KV, outlook=known) == RouteWork(TokenWork(1, 49), 1000, 50)
    assert known.forecast(work(KV, Route.SPEC_KV, outlook=known)).ttft_ms == 10
    both = SpecKvPc(replace(PC, capacity=200), KV)
    held = SystemState(compressed=((both.canonical(), 0),), entries=frozenset({both.canonical()}))
    assert work(both, Route.SPEC_KV_PC, outlook=held) == RouteWork(TokenWork(1, 49), 200, 50)
    assert work(replace(KV, capacity=60), Route.SPEC_KV, outlook=known).scoring is not None
