"""KV plans: which KV the target shall keep, from a choice and the draft's answer. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import CompressedPrompt
from presift.core.policies import KvSelection, SpecKvPc, SpecPc
from presift.core.spans import Span, covered, spans_of
from presift.orchestrator.choices import Choice
from presift.orchestrator.tokenizer import Tokenized


def kv_plan_of(choice: Choice, prompt: CompressedPrompt, tokens: Tokenized) -> KvPlan | None:
    """Which KV to keep of what the target reads; None where all of it is kept."""
    policy, keep_full_prefix = choice.policy, bool(choice.keep_full_prefix)
    if policy is None or isinstance(policy, SpecPc):
        return None
    if isinstance(policy, SpecKvPc):
        if prompt.mask.kept_tokens - 1 <= policy.kv.capacity:
            return None
        protected = moved(tokens.protected, prompt.mask.kept)
        return KvPlan(policy.kv, protected, prompt.lookahead_token_ids, keep_full_prefix=keep_full_prefix)
    if policy.selection is KvSelection.DRAFT_MASK:
        kv_mask = KvMask.uniform(prompt.mask)
        return KvPlan(policy, tokens.protected, kv_mask=kv_mask, keep_full_prefix=keep_full_prefix)
    return KvPlan(policy, tokens.protected, prompt.lookahead_token_ids, keep_full_prefix=keep_full_prefix)


def moved(protected: tuple[Span, ...], kept: NDArray[np.bool_]) -> tuple[Span, ...]:
    """The protected spans where they lie in the compressed prompt; what has come together is one span."""
    return spans_of(covered(protected, int(kept.size))[kept])


def held_tokens(plan: KvPlan, read_tokens: int) -> int:
    """The KV tokens that `read_tokens` tokens hold while decoding: the kept pairs, the final token of what the plan
    covers, and all that follows it.
    """
    prompt_tokens = plan.covered_tokens(read_tokens)
    return min(plan.policy.capacity, prompt_tokens - 1) + 1 + read_tokens - prompt_tokens
