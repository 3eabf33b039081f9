"""How another target continues an answer whose target was lost: it reads the prompt and the answer so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from presift.orchestrator.domain.ports import TargetRequest

# Each of them counts the tokens of the answer. To the second target the first ones are tokens of the prompt.
_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}


def can_migrate(request: TargetRequest) -> bool:
    """Whether the rest of an answer depends on the tokens before it alone.

    Not if the target has state of the answer: the parser of a format, a grammar, penalties, or a KV selection made by
    the answer itself. A seeded token is drawn by its position, which after dropped KV is another one for the first
    token of a request.
    """
    sampling, plan = request.sampling, request.kv_plan
    if request.answer_format is not None or sampling.grammar is not None:
        return False
    if any(getattr(sampling, name) not in (None, neutral) for name, neutral in _PENALTIES.items()):
        return False
    if plan is not None:
        return sampling.is_greedy and not plan.policy.renews
    return sampling.is_greedy or sampling.seed is not None


def remainder_of(request: TargetRequest, answer: Sequence[int]) -> TargetRequest | None:
    """The request for what follows the tokens of `answer`; None if nothing is left to generate.

    A KV plan still covers the prompt alone, so the same KV is selected; the answer so far is read in full behind it.
    """
    sampling, plan, read_ids = request.sampling, request.kv_plan, request.token_ids
    left = sampling.max_new_tokens - len(answer)
    if left < 1:
        return None
    least = max(0, (sampling.min_new_tokens or 0) - len(answer)) or None
    return replace(
        request,
        token_ids=np.concatenate([read_ids, np.array(answer, dtype=np.uint32)]),
        sampling=replace(sampling, max_new_tokens=left, min_new_tokens=least),
        kv_plan=None if plan is None else replace(plan, prompt_tokens=plan.covered_tokens(read_ids.size)),
    )
