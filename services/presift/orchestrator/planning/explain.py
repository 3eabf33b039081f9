"""Explains a plan: the fate of every run of prompt tokens. Pure: a plan and the kept KV in, spans out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.spans import Span, covered
from presift.orchestrator.domain.limits import MAX_EXPLAINED_SPANS
from presift.orchestrator.planning.kept_kv import KeptKv
from presift.orchestrator.routing.candidates import Candidate
from presift.orchestrator.routing.decision import Decision, Plan


@dataclass(frozen=True, slots=True)
class ExplainedSpan:
    """A run of tokens with one fate. `characters` is None for prompts of token ids; `importance` is a share, 0..1.

    `kept_share` is the share of each token's KV pairs that the target keeps, None if unknown.
    """

    tokens: Span
    characters: Span | None
    kept: bool
    protected: bool
    importance: float
    kept_share: float | None = None


@dataclass(frozen=True, slots=True)
class Detail:
    """How much to explain: the KV pairs that the target keeps; one span per token instead of runs."""

    kv_mask: bool = False
    span_per_token: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, the candidates it was made from, and the fate of the prompt. Characters count in `text`, which is
    empty for token ids."""

    decision: Decision
    spans: list[ExplainedSpan]
    text: str = ""
    kept_kv: KeptKv | None = None
    routes: tuple[Candidate, ...] = ()


def explain(
    plan: Plan,
    offsets: NDArray[np.int32] | None,
    kept_kv: KeptKv | None = None,
    *,
    span_per_token: bool = False,
) -> list[ExplainedSpan]:
    """Runs in prompt order that cover the whole prompt. `offsets`: the characters [start, end) of each token,
    int32[tokens, 2].

    Raises InvalidRequest if there are more than a reply may hold.
    """
    prompt_tokens = int(plan.kept_mask.size)
    protected = covered(plan.tokens.protected, prompt_tokens)
    held = plan.kept_mask.astype(np.float64) if kept_kv is None else kept_kv.shares
    is_border = np.ones(max(0, prompt_tokens - 1), dtype=np.bool_)
    if not span_per_token:
        is_border = (np.diff(held) != 0) | np.diff(protected)
    borders = [0, *(np.flatnonzero(is_border) + 1).tolist(), prompt_tokens]
    if len(borders) - 1 > MAX_EXPLAINED_SPANS:
        field = "span_per_token" if span_per_token else "prompt"
        raise InvalidRequest(field, f"{len(borders) - 1} spans", f"at most {MAX_EXPLAINED_SPANS}")
    shares = np.add.reduceat(_shares(plan.importance, prompt_tokens), borders[:-1]).tolist()
    characters = _characters(offsets, borders)
    return [
        ExplainedSpan(
            tokens=Span(start, end),
            characters=each,
            kept=bool(held[start] > 0),
            protected=bool(protected[start]),
            importance=share,
            kept_share=None if kept_kv is None else float(held[start]),
        )
        for (start, end), share, each in zip(pairwise(borders), shares, characters, strict=True)
    ]


def _shares(importance: NDArray[np.float32] | None, prompt_tokens: int) -> NDArray[np.float64]:
    if importance is None or importance.sum() <= 0:
        return np.zeros(prompt_tokens)
    values = importance.astype(np.float64)
    return np.asarray(values / values.sum())


def _characters(offsets: NDArray[np.int32] | None, borders: list[int]) -> Iterable[Span | None]:
    """Of the runs between `borders`. None for a run without characters."""
    if offsets is None:
        return repeat(None, len(borders) - 1)
    firsts, ends = offsets[borders[:-1], 0].tolist(), offsets[np.array(borders[1:]) - 1, 1].tolist()
    return (Span(first, end) if end > first else None for first, end in zip(firsts, ends, strict=True))
