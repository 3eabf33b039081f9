"""Scores a first prompt, to prove before the service is ready that the model can be scored."""

from __future__ import annotations

import numpy as np

from presift.core.errors import InternalError
from presift.core.policies import SpecPc
from presift.draft.scorer import Cancel, Scorer, ScoreTask

_PROMPT_TOKENS = 64
_WINDOW = 8


def warm_up(scorer: Scorer, cancel: Cancel) -> None:
    """Score one prompt in every layer, with lookahead if the model can generate.

    Raises InternalError if the rows are not probabilities.

    A model whose attention cannot be captured, or is scaled differently, fails here instead of in a caller's request.
    """
    info = scorer.info
    tokens = min(_PROMPT_TOKENS, info.context_tokens - 2)
    steps = 2 if info.can_look_ahead else 1
    ids = np.arange(tokens, dtype=np.uint32) % info.vocabulary_size
    policy = SpecPc(capacity=_WINDOW, window=_WINDOW, start_layer=0, weighted_query=False, lookahead_tokens=steps)
    scored = scorer.score(ScoreTask(ids, policy, lookahead_tokens=steps if info.can_look_ahead else 0), cancel)
    mass = scored.coverage_importance
    if mass is None or not np.isfinite(mass).all() or mass.sum() <= 0.0:
        raise InternalError(f"the model {info.id} cannot be scored: its warm-up prompt got no valid attention values")
