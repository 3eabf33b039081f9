"""Estimates with 95 % intervals. Pure; equal inputs and seeds give equal results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of the normal distribution, for 95 %.
_Z = 1.959964
_RESAMPLES = 2000
# Numbers that one step of the bootstrap draws at most: 8 MiB.
_DRAWN = 2**20

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value between the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(right: float, count: int) -> Estimate:
    """The proportion `right / count` with Wilson's interval. `count` >= 1."""
    share = right / count
    spread = _Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Sequence[float], seed: int) -> Estimate:
    """The mean of at least one value, with the interval of the bootstrap."""
    found = np.asarray(values, dtype=np.float64)
    return _bootstrap(float(found.mean()), len(found), lambda drawn: found[drawn].mean(axis=1), seed)


def ratio(values: Sequence[float], baseline: Sequence[float], seed: int) -> Estimate | None:
    """The mean of `values` as a share of that of `baseline`, with the interval of the paired bootstrap: both are drawn
    together, example by example. None if the baseline is 0."""
    one, other = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if not other.sum() > 0:
        return None

    def shares(drawn: NDArray[np.int64]) -> Floats:
        sums = other[drawn].sum(axis=1)
        found: Floats = np.divide(one[drawn].sum(axis=1), sums, out=np.full(len(drawn), np.nan), where=sums > 0)
        return found

    return _bootstrap(float(one.sum() / other.sum()), len(one), shares, seed)


def losses_by_chance() -> int:
    """The most differences, all in one direction, that a two-sided sign test at 5 % still attributes to chance."""
    return next(count for count in range(1, 64) if 2 * 0.5 ** (count + 1) < 0.05)


def _bootstrap(value: float, count: int, statistic: Callable[[NDArray[np.int64]], Floats], seed: int) -> Estimate:
    random = np.random.default_rng(seed)
    rows = max(1, _DRAWN // count)
    steps = [min(rows, _RESAMPLES - start) for start in range(0, _RESAMPLES, rows)]
    found = np.concatenate([statistic(random.integers(0, count, size=(step, count))) for step in steps])
    low, high = np.nanquantile(found, (0.025, 0.975))
    return Estimate(value, float(low), float(high))
