"""Intervals, against published values and against simulation."""

import numpy as np
import pytest

from presift.cli.evaluation.statistics import losses_by_chance, mean, ratio, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # R. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval(right, count, low, high):
    found = wilson(right, count)
    assert (found.value, found.low, found.high) == pytest.approx((right / count, low, high), abs=5e-5)


def test_wilsons_interval_is_symmetric():
    few, many = wilson(3, 10), wilson(7, 10)
    assert (few.low, few.high) == pytest.approx((1 - many.high, 1 - many.low))


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(1).random(40).tolist()
    assert mean(values, 5) == mean(values, 5) != mean(values, 6)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(2).normal(0.6, 0.1, 400)
    found, error = mean(values.tolist(), 0), 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.002)


def test_pairs_are_drawn_together():
    """Equal answers give a share of 1 in every sample; drawn apart, they would not."""
    scores = [1.0, 0.0] * 20
    found = ratio(scores, scores, 0)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_share_of_full_covers_the_truth():
    """In 100 experiments of 60 prompts with a true share of 0.8, the interval holds it about 95 times."""
    random, held = np.random.default_rng(3), 0
    for seed in range(100):
        full = (random.random(60) < 0.75).astype(float)
        found = ratio((full * (random.random(60) < 0.8)).tolist(), full.tolist(), seed)
        held += found.low <= 0.8 <= found.high
    assert 88 <= held <= 100


def test_no_share_of_nothing():
    assert ratio([1.0, 0.0], [0.0, 0.0], 0) is None
    assert ratio([1.0, 1.0], [0.0, 1.0], 0).value == 2.0  # samples without a right answer of full are left out


def test_many_values_are_drawn_in_steps():
    values = np.random.default_rng(4).random(3_000).tolist()
    found = mean(values, 0)
    assert found.low < found.value < found.high < found.low + 0.03


def test_five_losses_may_be_chance_and_six_are_not():
    assert losses_by_chance() == 5
