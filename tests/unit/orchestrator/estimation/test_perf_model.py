"""Stage costs are learned from timings, with or without outliers."""

import random
from math import inf, nan
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.estimation.perf_model import (
    KEPT_MODELS,
    KEPT_OBSERVATIONS,
    SEEDS,
    LearnedCurve,
    PerfModel,
)
from presift.orchestrator.routing.cost_model import (
    DRAFT_SEED,
    SELECTION_SEED,
    TARGET_SEED,
    CostCurve,
    StageCosts,
    TokenWork,
)

TRUTHS = {
    "a GPU": CostCurve(8.0, 0.05, 1.5, 6.0),
    "slow": CostCurve(100.0, 11.0, 2500.0, 80.0),
    "no attention to speak of": CostCurve(0.0, 3.0, 0.0, 30.0),
}


def readings(count, seed=0):
    draw = random.Random(seed)
    for _ in range(count):
        past = draw.choice([0, 0, draw.randrange(8000)])
        yield TokenWork(draw.randrange(16, 12_000), past, draw.choice([0, 7, 24]))


def worst_and_median(curve, truth, seed=99):
    errors = [abs(curve.ms(each) / truth.ms(each) - 1) for each in readings(200, seed)]
    return max(errors), median(errors)


@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS)
def test_an_unknown_machine_is_learned(truth):
    learned, draw = LearnedCurve(DRAFT_SEED), random.Random(1)
    for reading in readings(KEPT_OBSERVATIONS):
        learned.observe(reading, truth.ms(reading) * draw.uniform(0.9, 1.1))
    assert worst_and_median(learned.curve, truth)[1] < 0.1
    assert learned.curve.observations == KEPT_OBSERVATIONS


def test_one_observation_sets_the_scale():
    learned = LearnedCurve(TARGET_SEED)
    learned.observe(TokenWork(1000), TARGET_SEED.ms(TokenWork(1000)) / 50)
    for tokens in (300, 1000, 4000):
        assert learned.curve.ms(TokenWork(tokens)) == pytest.approx(TARGET_SEED.ms(TokenWork(tokens)) / 50, rel=0.01)


@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS)
def test_outliers_do_not_move_it(truth):
    learned, draw = LearnedCurve(DRAFT_SEED), random.Random(2)
    for number, reading in enumerate(readings(KEPT_OBSERVATIONS)):
        learned.observe(reading, truth.ms(reading) * (20 if number % 5 == 0 else draw.uniform(0.95, 1.05)))
    assert worst_and_median(learned.curve, truth)[1] < 0.25


def test_a_machine_that_changed_is_learned_again():
    learned, slow = LearnedCurve(TARGET_SEED), TRUTHS["slow"]
    for truth in (TRUTHS["a GPU"], slow):
        for reading in readings(KEPT_OBSERVATIONS):
            learned.observe(TokenWork(reading.new_tokens, reading.past_tokens), truth.ms(reading) - 80 * reading.steps)
    # This mixture does not determine the share of megapairs exactly, but the time.
    assert learned.curve.ms(TokenWork(6000)) == pytest.approx(slow.ms(TokenWork(6000)), rel=0.25)


@given(st.lists(st.tuples(st.integers(1, 20_000), st.floats(0.01, 1e6)), min_size=1, max_size=20))
def test_no_weight_is_negative_and_longer_prompts_never_take_less(timings):
    learned = LearnedCurve(TARGET_SEED)
    for tokens, took_ms in timings:
        learned.observe(TokenWork(tokens), took_ms)
    assert min(learned.curve.weights) >= 0
    times = [learned.curve.ms(TokenWork(tokens)) for tokens in (1, 10, 100, 1000, 10_000)]
    assert times == sorted(times)


@pytest.mark.parametrize("took_ms", [0.0, -3.0, 1e-320, nan, inf, 1e308])
def test_times_that_no_clock_can_have_measured_are_ignored(took_ms):
    book = PerfModel()
    book.observe("target", "m", TokenWork(10), took_ms)
    assert book.costs("", "m").target == TARGET_SEED


def test_few_models_are_kept_each_for_itself():
    book = PerfModel()
    book.observe("draft", "fast", TokenWork(1000), 10.0)
    assert book.costs("fast", "t").draft.ms(TokenWork(1000)) == pytest.approx(10.0, rel=0.01)
    assert book.costs("other", "t") == StageCosts()
    for number in range(3 * KEPT_MODELS):
        book.observe("target", f"m{number}", TokenWork(10), 1.0)
    assert len(book) == KEPT_MODELS


def test_contention_is_the_share_that_the_longer_work_did_not_hide():
    book = PerfModel()
    for took_ms in (100, 150, 140, 900):
        book.observe_side_by_side(100, 80, took_ms)
    assert book.costs("d", "t").contention == pytest.approx((0.5 + 0.625) / 2)
    book.observe_side_by_side(0.0, 80, 80)
    assert book.costs("d", "t").contention == pytest.approx((0.5 + 0.625) / 2)


def test_an_unobserved_replica_is_as_fast_as_the_last_observed_one():
    book = PerfModel()
    for replica, took_ms in (("m@r#a", 100.0), ("m@r#b", 900.0), ("n@r#a", 5.0)):
        book.observe("target", replica, TokenWork(1000), took_ms)
    fast, slow, new = (book.costs("", f"m@r#{replica}").target.ms(TokenWork(1000)) for replica in "abc")
    assert (fast, slow) == (pytest.approx(100, rel=0.02), pytest.approx(900, rel=0.02)) and new == slow
    book.observe("target", "m@r#a", TokenWork(1000), 100.0)
    assert book.costs("", "m@r#c").target == book.costs("", "m@r#a").target
    assert book.costs("", "o@r#a").target == SEEDS["target"] == book.costs("", "unmarked").target
    assert [(each.stage, each.location) for each in book.learned()] == [
        ("target", f"{p}") for p in ("m@r#b", "n@r#a", "m@r#a")
    ]


def test_unobserved_scoring_is_scaled_as_the_target():
    book, reading = PerfModel(), TokenWork(40, 8000)
    book.observe("target", "m", TokenWork(1024), TARGET_SEED.ms(TokenWork(1024)) / 50)
    guessed = book.costs("", "m").selection
    assert guessed.ms(reading) == pytest.approx(SELECTION_SEED.ms(reading) / 50, rel=0.02) and not guessed.observations
    book.observe("scoring", "m", reading, 77.0)
    assert book.costs("", "m").selection.ms(reading) == pytest.approx(77, rel=0.02)
