"""Validates the draft's answer, from the draft or from the cache, against its policy before it is applied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from presift.core.errors import DraftUnavailable
from presift.core.kv_plan import KvPlan
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.policies import Policy, SpecPc
from presift.core.spans import Span, covered, moved, must_keep, must_keep_kv
from presift.orchestrator.domain.ports import MaskRejected
from presift.orchestrator.domain.request import TokenizedPrompt


class DraftChanged(DraftUnavailable):
    """The answer came from another model or revision than the cache key names."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoringJob:
    """A request to the draft: a prompt of the target's tokens, the policy, and the draft that the cache key names."""

    tokens: TokenizedPrompt
    policy: Policy
    draft: ModelInfo
    target: ModelInfo


def check_draft(replied: ModelInfo, known: ModelInfo) -> None:
    """Raise DraftChanged unless the answer came from the draft that the cache key names."""
    if replied != known:
        raise DraftChanged(f"the draft is now {replied.id} at {replied.short_revision}, not {known.short_revision}")


def check_prompt(prompt: CompressedPrompt, job: ScoringJob) -> None:
    """Raise MaskRejected unless mask, lookahead and KV capacity fit the policy."""
    check_mask(prompt.mask, job)
    check_kv_capacity(prompt, job)
    check_lookahead(prompt.lookahead_token_ids, job)


def check_mask(mask: TokenMask, job: ScoringJob) -> None:
    """Raise MaskRejected unless the mask fits the prompt and the budget and keeps protected spans and window."""
    tokens, policy = job.tokens, job.policy.mask_policy
    prompt_tokens = int(tokens.ids.size)
    if mask.prompt_tokens != prompt_tokens:
        raise MaskRejected(f"mask of {mask.prompt_tokens} tokens for a prompt of {prompt_tokens}")
    if policy is None:
        if mask.kept_tokens != prompt_tokens:
            raise MaskRejected(f"mask drops {prompt_tokens - mask.kept_tokens} tokens although the target selects")
        return
    _check_size(mask, policy, job)
    missing = int(np.count_nonzero(must_keep(tokens.protected, prompt_tokens, policy.window) & ~mask.kept))
    if missing:
        raise MaskRejected(f"mask drops {missing} tokens that are protected or in the window")


def _check_size(mask: TokenMask, policy: SpecPc, job: ScoringJob) -> None:
    kept, least = mask.kept_tokens, 0
    if policy.adaptive is not None and mask.prompt_tokens > policy.capacity:
        least = policy.adaptive.min_capacity
        if not policy.adaptive.allows(kept, policy.capacity):
            limit = f"{least}..{policy.capacity} in steps of {policy.adaptive.step}"
            raise MaskRejected(f"mask keeps {kept} tokens, the budget is {limit}")
    elif job.policy.prompt_stage is None:
        # A KV mask has a whole number of the target's pages only if it is filled.
        least = min(policy.capacity, mask.prompt_tokens)
    if not least <= kept <= policy.capacity:
        raise MaskRejected(f"mask keeps {kept} tokens, the budget is {policy.capacity}")


def check_kv_capacity(prompt: CompressedPrompt, job: ScoringJob) -> None:
    """Raise MaskRejected if the draft reports a KV capacity that was not requested or is too small for window and
    protected spans. Without a reported one the policy's capacity applies.
    """
    policy, capacity = job.policy.lookahead_policy, prompt.kv_capacity
    if capacity is None:
        return
    if policy is None or policy.adaptive is None:
        raise MaskRejected(f"KV capacity of {capacity} although none was requested")
    if not policy.adaptive.allows(capacity, policy.capacity):
        limit = f"{policy.adaptive.min_capacity}..{policy.capacity} in steps of {policy.adaptive.step}"
        raise MaskRejected(f"KV capacity of {capacity}, the budget is {limit}")
    spans = moved(job.tokens.protected, prompt.mask.kept)
    needed = int(np.count_nonzero(must_keep_kv(spans, prompt.mask.kept_tokens, policy.window)))
    if capacity < needed:
        raise MaskRejected(f"KV capacity of {capacity}, window and protected spans need {needed}")


def check_lookahead(token_ids: tuple[int, ...], job: ScoringJob) -> None:
    """Raise MaskRejected unless the lookahead that the target reads is short enough and within its vocabulary."""
    policy = job.policy.lookahead_policy
    if policy is None:
        return
    if len(token_ids) > policy.lookahead_tokens:
        raise MaskRejected(f"lookahead of {len(token_ids)} tokens, {policy.lookahead_tokens} were requested")
    if (highest := max(token_ids, default=0)) >= job.target.vocabulary_size:
        size = job.target.vocabulary_size
        raise MaskRejected(f"lookahead token {highest} is outside the target's vocabulary of {size}")


def keeps_protected(plan: KvPlan, protected: tuple[Span, ...], prompt_tokens: int) -> bool:
    """Whether an earlier plan certainly kept everything that is protected now, as far as it reaches."""
    covers = plan.prompt_tokens
    wanted = covered(protected, prompt_tokens)[:covers]
    return not (wanted & ~must_keep(plan.protected, covers, plan.policy.window + 1)).any()
