"""KV plans: which KV the target shall keep, from a choice and the draft's answer. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import CompressedPrompt
from presift.core.policies import KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.core.spans import moved
from presift.orchestrator.choices import Choice
from presift.orchestrator.tokenizer import Tokenized


def kv_plan_of(choice: Choice, prompt: CompressedPrompt, tokens: Tokenized) -> KvPlan | None:
    """Which KV to keep of what the target reads; None where all of it is kept."""
    asked, keep_full_prefix = choice.policy, bool(choice.keep_full_prefix)
    if asked is None or isinstance(asked, SpecPc):
        return None
    policy = settled_kv(asked.kv if isinstance(asked, SpecKvPc) else asked, prompt)
    if isinstance(asked, SpecKvPc):
        if prompt.mask.kept_tokens - 1 <= policy.capacity:
            return None
        protected = moved(tokens.protected, prompt.mask.kept)
        return KvPlan(policy, protected, prompt.lookahead_token_ids, keep_full_prefix=keep_full_prefix)
    if policy.selection is KvSelection.DRAFT_MASK:
        kv_mask = KvMask.uniform(prompt.mask)
        return KvPlan(policy, tokens.protected, kv_mask=kv_mask, keep_full_prefix=keep_full_prefix)
    return KvPlan(policy, tokens.protected, prompt.lookahead_token_ids, keep_full_prefix=keep_full_prefix)


def settled_kv(policy: SpecKv, prompt: CompressedPrompt) -> SpecKv:
    """The policy at the capacity that the draft came to, where it adapts."""
    if policy.adaptive is None:
        return policy
    if policy.selection is KvSelection.DRAFT_MASK:
        return replace(policy, capacity=prompt.mask.kept_tokens - 1, adaptive=None)
    # The mask is what the draft counted by: the target does not need it.
    return replace(policy, capacity=prompt.kv_capacity or policy.capacity, adaptive=None, mask=None)


def held_tokens(plan: KvPlan, read_tokens: int) -> int:
    """The KV tokens that `read_tokens` tokens hold while decoding: the kept pairs, the final token of what the plan
    covers, and all that follows it.
    """
    prompt_tokens = plan.covered_tokens(read_tokens)
    return min(plan.policy.capacity, prompt_tokens - 1) + 1 + read_tokens - prompt_tokens
