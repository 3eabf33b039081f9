"""Speeds: the stages' cost curves, learnt from their own timings. No clock: readings and milliseconds in, curves out.

A curve is its seed until something was observed. Then the seed's scale is the running median of observed to predicted,
and its shape bends as far as the observations ask for: least squares of relative errors, drawn to the scaled seed, with
the weight of outliers cut (Huber). Only the last observations are kept.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from presift.orchestrator.estimation.location import split_location
from presift.orchestrator.routing.cost_model import (
    DECODING_SEED,
    DRAFT_SEED,
    SCORING_SEED,
    TARGET_SEED,
    CostCurve,
    StageCosts,
    TokenWork,
    scoring_guess,
)

KEPT_OBSERVATIONS = 64
KEPT_MODELS = 64
# In units of one observation: what it takes to bend the seed's shape.
_PRIOR = 0.3
# Of the prediction: errors beyond this count as if they were no larger.
_CLIP = 0.15
_ROUNDS = 4
SEEDS = {"draft": DRAFT_SEED, "target": TARGET_SEED, "scoring": SCORING_SEED, "decoding": DECODING_SEED}


@dataclass(frozen=True, slots=True)
class StageCost:
    """What was learnt of a stage at a place (`places`). `contention` as in `StageCosts`, 0 but for the draft."""

    stage: str
    place: str
    curve: CostCurve
    contention: float = 0.0


class LearnedCurve:
    """A curve that follows its observations."""

    def __init__(self, seed: CostCurve) -> None:
        self._seed = seed
        self._observed: deque[tuple[tuple[float, ...], float]] = deque(maxlen=KEPT_OBSERVATIONS)
        self.curve = seed

    def observe(self, reading: TokenWork, took_ms: float) -> None:
        """One timing; what is not positive is no timing."""
        if took_ms > 0.0:
            self._observed.append((reading.features, took_ms))
            self.curve = self._fitted()

    def _fitted(self) -> CostCurve:
        features = np.array([each for each, _ in self._observed])
        took_ms = np.array([each for _, each in self._observed])
        seed = np.array(self._seed.weights)
        scaled = seed * max(median((took_ms / np.maximum(features @ seed, 1e-9)).tolist()), 1e-9)
        weights = scaled * _bent(features * scaled / took_ms[:, None])
        call, token, megapair, step = (float(weight) for weight in weights)
        return CostCurve(call, token, megapair, step, observations=len(self._observed))


def _bent(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[features], none negative: factors that bring each row of `shares`[observations, features] to sum to 1."""
    count = shares.shape[1]
    factors = np.ones(count)
    for _ in range(_ROUNDS):
        errors = np.abs(shares @ factors - 1.0)
        trust = np.minimum(1.0, _CLIP / np.maximum(errors, 1e-9))[:, None]
        normal = shares.T @ (trust * shares) + _PRIOR * np.eye(count)
        # Negative speeds would make longer prompts cheaper: what falls below nothing stays there.
        factors = np.maximum(np.linalg.solve(normal, (trust * shares).sum(axis=0) + _PRIOR), 0.0)
    return factors


class PerfModel:
    """Learnt curves by stage and place (`places`), the least recently observed leave.

    What was never observed at a replica is taken from the model's replica that was observed last; scoring that was
    observed nowhere is guessed from how the target reads.
    """

    def __init__(self, models: int = KEPT_MODELS) -> None:
        self._models = models
        self._curves: OrderedDict[tuple[str, str], LearnedCurve] = OrderedDict()
        self._pairs: dict[tuple[str, str], StageCosts] = {}  # as they are until the next observation
        self._contention: deque[float] = deque(maxlen=KEPT_OBSERVATIONS)
        self._contended = 0.0

    def __len__(self) -> int:
        return len(self._curves)

    def costs(self, draft: str, target: str) -> StageCosts:
        """What is known of this pair."""
        known = self._pairs.get((draft, target))
        if known is None:
            while len(self._pairs) >= self._models:
                self._pairs.popitem()
            reading, scoring = self._curve("target", target), self._curve("scoring", target)
            known = self._pairs[draft, target] = StageCosts(
                draft=self._curve("draft", draft),
                target=reading,
                scoring=scoring if scoring.observations else scoring_guess(reading),
                decoding=self._curve("decoding", target),
                contention=self._contended,
            )
        return known

    def learned(self) -> list[StageCost]:
        """All curves that rest on observations, the last observed last."""
        return [
            StageCost(stage, place, known.curve, self._contended if stage == "draft" else 0.0)
            for (stage, place), known in self._curves.items()
        ]

    def observe(self, stage: str, place: str, reading: TokenWork, took_ms: float) -> None:
        """A timing of a stage: "draft", "target", "scoring" or "decoding"."""
        key = stage, place
        self._pairs.clear()
        curve = self._curves.setdefault(key, LearnedCurve(SEEDS[stage]))
        self._curves.move_to_end(key)
        while len(self._curves) > self._models:
            self._curves.popitem(last=False)
        curve.observe(reading, took_ms)

    def observe_side_by_side(self, draft_ms: float, target_ms: float, took_ms: float) -> None:
        """Draft and target worked at once: what each was predicted to take alone, and what both took."""
        shorter = min(draft_ms, target_ms)
        if shorter > 0.0:
            self._contention.append(min(1.0, max(0.0, (took_ms - max(draft_ms, target_ms)) / shorter)))
            self._contended = median(self._contention)
            self._pairs.clear()

    def _curve(self, stage: str, place: str) -> CostCurve:
        known = self._curves.get((stage, place))
        return self._of_model(stage, split_location(place)[0]) if known is None else known.curve

    def _of_model(self, stage: str, model: str) -> CostCurve:
        """The curve of any replica of it, the last observed one's."""
        replicas = [key for key in self._curves if key[0] == stage and split_location(key[1])[0] == model]
        return self._curves[replicas[-1]].curve if replicas else SEEDS[stage]


def calibrate(book: PerfModel, stage: str, place: str, timings: Iterable[tuple[TokenWork, float]]) -> None:
    """Learn from a series of timings, as calibration makes them: (reading, milliseconds)."""
    for reading, took_ms in timings:
        book.observe(stage, place, reading, took_ms)
