"""Explanation: the fate of every run of prompt tokens. Pure: a plan and importance in, spans out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from presift.core.spans import Span, covered
from presift.orchestrator.decision import Plan


@dataclass(frozen=True, slots=True)
class ExplainedSpan:
    """A run of tokens with one fate. `characters` is None for prompts of token ids; `importance` is a share, 0..1."""

    tokens: Span
    characters: Span | None
    kept: bool
    protected: bool
    importance: float


def explain(plan: Plan, offsets: Sequence[tuple[int, int]] | None) -> list[ExplainedSpan]:
    """Runs in prompt order that cover it wholly. `offsets`: the characters [start, end) of each token."""
    prompt_tokens = int(plan.kept.size)
    protected = covered(plan.protected, prompt_tokens)
    fate = plan.kept.astype(np.int8) + 2 * protected.astype(np.int8)
    borders = [0, *(np.flatnonzero(np.diff(fate)) + 1).tolist(), prompt_tokens]
    shares = _shares(plan.importance, prompt_tokens)
    return [
        ExplainedSpan(
            tokens=Span(start, end),
            characters=_characters(offsets, start, end),
            kept=bool(plan.kept[start]),
            protected=bool(protected[start]),
            importance=float(shares[start:end].sum()),
        )
        for start, end in pairwise(borders)
    ]


def _shares(importance: NDArray[np.float32] | None, prompt_tokens: int) -> NDArray[np.float64]:
    if importance is None or importance.sum() <= 0:
        return np.zeros(prompt_tokens)
    values = importance.astype(np.float64)
    return np.asarray(values / values.sum())


def _characters(offsets: Sequence[tuple[int, int]] | None, start: int, end: int) -> Span | None:
    if offsets is None:
        return None
    first, last = offsets[start][0], offsets[end - 1][1]
    return Span(first, last) if last > first else None
