"""Scores a first prompt, to prove before the service is ready that the model can be scored."""

from __future__ import annotations

import numpy as np

from presift.core.errors import InternalError, InvalidRequest
from presift.core.policies import SpecPc
from presift.draft.scorer import Cancel, Scorer, ScoreTask

_PROMPT_TOKENS = 64
_WINDOW = 8


def warm_up(scorer: Scorer, cancel: Cancel) -> None:
    """Score one prompt in every layer, with lookahead if the model can generate.

    Raises InvalidRequest if that is impossible: such a model fails here instead of in a caller's request.
    """
    info = scorer.info
    tokens = min(_PROMPT_TOKENS, info.context_tokens - 2)
    steps = 2 if info.can_look_ahead else 1
    ids = np.arange(tokens, dtype=np.uint32) % info.vocabulary_size
    policy = SpecPc(capacity=_WINDOW, window=_WINDOW, start_layer=0, weighted_query=False, lookahead_tokens=steps)
    try:
        mass = scorer.score(ScoreTask(ids, policy, steps if info.can_look_ahead else 0), cancel).coverage_importance
    except (InternalError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Code of a model family that this draft was not written for.
        raise InvalidRequest("model", info.id, f"a model that can score its warm-up prompt ({error})") from error
    if mass is None or not np.isfinite(mass).all() or mass.sum() <= 0.0:
        raise InvalidRequest("model", info.id, "a model whose warm-up prompt gets finite attention values")
