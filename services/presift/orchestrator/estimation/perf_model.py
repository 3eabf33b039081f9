"""Performance model: the cost curves of the stages, learned from timings. It reads no clock.

Without observations a curve is its seed. Otherwise the seed is scaled by the median of observed to predicted times. Its
shape then follows the observations: a least-squares fit of relative errors, with the scaled seed as prior and a limited
weight of outliers (Huber). Only the last observations count.

Curves are kept by location: a model at a revision, and a replica of it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from presift.core.plan import ModelInfo
from presift.orchestrator.backends.measured import milliseconds
from presift.orchestrator.routing.cost_model import (
    DECODING_SEED,
    DRAFT_SEED,
    MOST_EARLY_RENEWALS,
    SELECTION_SEED,
    TARGET_SEED,
    CostCurve,
    StageCosts,
    TokenWork,
    selection_guess,
)

KEPT_OBSERVATIONS = 64
KEPT_MODELS = 64
# Weight of the seed's shape, in observations.
_PRIOR = 0.3
# Relative errors above this count as if they were this large.
_CLIP = 0.15
_ROUNDS = 4
_MARK = "#"
# The names are those of presift.v1.StageSpeed; "scoring" is the target's selection of KV.
SEEDS = {"draft": DRAFT_SEED, "target": TARGET_SEED, "scoring": SELECTION_SEED, "decoding": DECODING_SEED}


def location_of(model: ModelInfo, replica: str = "") -> str:
    """A location. `replica` is the name that a service gives its process, empty if it gives none."""
    return f"{model.id}@{model.revision}{_MARK}{replica}"


def split_location(location: str) -> tuple[str, str]:
    """Model (id@revision) and replica. No replica has the mark in its name."""
    model, mark, replica = location.rpartition(_MARK)
    return (model, replica) if mark else (location, "")


@dataclass(frozen=True, slots=True)
class LearnedCost:
    """The learned cost of a stage at a location. `contention`, 0 except for the draft, and `early_renewals`, 0 except
    for decoding, as in `StageCosts`."""

    stage: str
    location: str
    curve: CostCurve
    contention: float = 0.0
    early_renewals: float = 0.0


class LearnedCurve:
    """A cost curve that is fitted to its observations."""

    def __init__(self, seed: CostCurve) -> None:
        self._seed = seed
        self._observed: deque[tuple[tuple[float, ...], float]] = deque(maxlen=KEPT_OBSERVATIONS)
        self.curve = seed

    def observe(self, work: TokenWork, took_ms: float) -> None:
        """Add one timing in milliseconds; times that no clock can have measured are ignored."""
        if milliseconds(took_ms):
            self._observed.append((work.features, took_ms))
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
    """float64[features], none negative: factors with which the rows of `shares`[observations, features] sum to 1."""
    count = shares.shape[1]
    factors = np.ones(count)
    for _ in range(_ROUNDS):
        errors = np.abs(shares @ factors - 1.0)
        trust = np.minimum(1.0, _CLIP / np.maximum(errors, 1e-9))[:, None]
        normal = shares.T @ (trust * shares) + _PRIOR * np.eye(count)
        # Negative weights would make longer prompts cheaper.
        factors = np.maximum(np.linalg.solve(normal, (trust * shares).sum(axis=0) + _PRIOR), 0.0)
    return factors


class PerfModel:
    """Learned curves by stage and location. The least recently observed are evicted.

    A replica without observations takes the curve of the same model's replica that was observed last. If selection was
    never observed, its cost is guessed from the target's prefill.
    """

    def __init__(self, models: int = KEPT_MODELS) -> None:
        self._models = models
        # Not an LRUCache: reading a curve must not make it newer.
        self._curves: OrderedDict[tuple[str, str], LearnedCurve] = OrderedDict()
        self._pairs: dict[tuple[str, str], StageCosts] = {}  # valid until the next observation
        self._contention: deque[float] = deque(maxlen=KEPT_OBSERVATIONS)
        self._contended = 0.0
        self._early: deque[float] = deque(maxlen=KEPT_OBSERVATIONS)
        self._early_renewals = 0.0

    def __len__(self) -> int:
        return len(self._curves)

    def costs(self, draft: str, target: str) -> StageCosts:
        """The costs of this draft and this target."""
        known = self._pairs.get((draft, target))
        if known is None:
            while len(self._pairs) >= self._models:
                self._pairs.popitem()
            prefill, selection = self._curve("target", target), self._curve("scoring", target)
            known = self._pairs[draft, target] = StageCosts(
                draft=self._curve("draft", draft),
                target=prefill,
                selection=selection if selection.observations else selection_guess(prefill),
                decoding=self._curve("decoding", target),
                contention=self._contended,
                early_renewals=self._early_renewals,
            )
        return known

    def learned(self) -> list[LearnedCost]:
        """All curves that have observations, the most recently observed last."""
        return [
            LearnedCost(
                stage,
                location,
                known.curve,
                contention=self._contended if stage == "draft" else 0.0,
                early_renewals=self._early_renewals if stage == "decoding" else 0.0,
            )
            for (stage, location), known in self._curves.items()
        ]

    def observe(self, stage: str, location: str, work: TokenWork, took_ms: float) -> None:
        """Record a timing of a stage: one of `SEEDS`."""
        key = stage, location
        self._pairs.clear()
        curve = self._curves.setdefault(key, LearnedCurve(SEEDS[stage]))
        self._curves.move_to_end(key)
        while len(self._curves) > self._models:
            self._curves.popitem(last=False)
        curve.observe(work, took_ms)

    def observe_side_by_side(self, draft_ms: float, target_ms: float, took_ms: float) -> None:
        """Record that draft and target ran at the same time: the predicted time of each alone, and the time of both."""
        shorter = min(draft_ms, target_ms)
        if shorter > 0.0:
            self._contention.append(min(1.0, max(0.0, (took_ms - max(draft_ms, target_ms)) / shorter)))
            self._contended = median(self._contention)
            self._pairs.clear()

    def observe_renewals(self, made: int, tokens: int, every: int) -> None:
        """Record the renewals in `tokens` generated tokens whose interval was `every`."""
        self._early.append(min(MOST_EARLY_RENEWALS, max(0.0, made / tokens - 1 / every)))
        self._early_renewals = median(self._early)
        self._pairs.clear()

    def _curve(self, stage: str, location: str) -> CostCurve:
        known = self._curves.get((stage, location))
        return self._of_model(stage, split_location(location)[0]) if known is None else known.curve

    def _of_model(self, stage: str, model: str) -> CostCurve:
        """The curve of the model's replica that was observed last; the seed if there is none."""
        replicas = [key for key in self._curves if key[0] == stage and split_location(key[1])[0] == model]
        return self._curves[replicas[-1]].curve if replicas else SEEDS[stage]
