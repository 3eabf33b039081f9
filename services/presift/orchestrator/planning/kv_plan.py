"""KV plans: which KV the target shall keep, from a choice and the draft's answer. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import CompressedPrompt
from presift.core.policies import KvSelection, SpecKv
from presift.core.spans import moved
from presift.orchestrator.prompt.tokenizer import Tokenized
from presift.orchestrator.routing.choice import RouteChoice


def kv_plan_of(choice: RouteChoice, prompt: CompressedPrompt, tokens: Tokenized) -> KvPlan | None:
    """Which KV to keep of what the target reads; None where all of it is kept."""
    policy, keep_full_prefix = choice.policy, bool(choice.keep_full_prefix)
    if policy is None or policy.kv_stage is None:
        return None
    kv, protected = settled_kv(policy.kv_stage, prompt), tokens.protected
    if policy.prompt_stage is not None:
        if prompt.mask.kept_tokens - 1 <= kv.capacity:
            return None
        protected = moved(protected, prompt.mask.kept)
    if kv.selection is KvSelection.DRAFT_MASK:
        return KvPlan(kv, protected, kv_mask=KvMask.uniform(prompt.mask), keep_full_prefix=keep_full_prefix)
    return KvPlan(kv, protected, prompt.lookahead_token_ids, keep_full_prefix=keep_full_prefix)


def settled_kv(policy: SpecKv, prompt: CompressedPrompt) -> SpecKv:
    """The policy at the capacity that the draft came to, where it adapts."""
    if policy.adaptive is None:
        return policy
    if policy.selection is KvSelection.DRAFT_MASK:
        return replace(policy, capacity=prompt.mask.kept_tokens - 1, adaptive=None)
    # The mask is what the draft counted by: the target does not need it.
    return replace(policy, capacity=prompt.kv_capacity or policy.capacity, adaptive=None, mask=None)
