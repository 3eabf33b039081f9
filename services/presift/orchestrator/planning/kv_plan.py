"""Which KV pairs the target keeps, from a choice and the draft's answer. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import CompressedPrompt
from presift.core.policies import KvSelection, Policy, SpecKv
from presift.core.spans import moved
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.routing.choice import RouteChoice


def kv_plan_of(choice: RouteChoice, prompt: CompressedPrompt, tokens: TokenizedPrompt) -> KvPlan | None:
    """The KV to keep of the tokens that the target reads; None if all of it is kept."""
    policy, keep_full_prefix = choice.policy, bool(choice.keep_full_prefix)
    if policy is None or policy.kv_stage is None or not drops_kv(policy, prompt):
        return None
    kv, protected = resolved_kv(policy.kv_stage, prompt), tokens.protected
    if policy.prompt_stage is not None:
        protected = moved(protected, prompt.mask.kept)
    if kv.selection is KvSelection.DRAFT_MASK:
        return KvPlan(kv, protected, kv_mask=KvMask.uniform(prompt.mask), keep_full_prefix=keep_full_prefix)
    return KvPlan(kv, protected, prompt.lookahead_token_ids, keep_full_prefix=keep_full_prefix)


def drops_kv(policy: Policy, prompt: CompressedPrompt) -> bool:
    """Whether KV is dropped: not if a prompt stage leaves no more tokens than the KV stage keeps."""
    if policy.kv_stage is None or policy.prompt_stage is None:
        return policy.kv_stage is not None
    return prompt.mask.kept_tokens - 1 > resolved_kv(policy.kv_stage, prompt).capacity


def resolved_kv(policy: SpecKv, prompt: CompressedPrompt) -> SpecKv:
    """The policy with the capacity that the draft chose, if its capacity adapts."""
    if policy.adaptive is None:
        return policy
    if policy.selection is KvSelection.DRAFT_MASK:
        return replace(policy, capacity=prompt.mask.kept_tokens - 1, adaptive=None)
    # The draft counted by the mask; the target does not need it.
    return replace(policy, capacity=prompt.kv_capacity or policy.capacity, adaptive=None, mask=None)
