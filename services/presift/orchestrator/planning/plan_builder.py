"""Builds plans: the tokens to read, the KV to keep and the decision, from a choice and the draft's answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.policies import KvSelection, Policy, SpecKv
from presift.core.spans import moved
from presift.orchestrator.domain.ports import ReplicaRef
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.compressor import CompressionResult
from presift.orchestrator.planning.conversations import StoredSelection
from presift.orchestrator.planning.draft_stage import DraftResult
from presift.orchestrator.planning.request_context import RequestContext
from presift.orchestrator.routing.adaptive_capacity import capacity_text
from presift.orchestrator.routing.candidates import Candidate
from presift.orchestrator.routing.choice import RouteChoice, with_clause
from presift.orchestrator.routing.decision import CacheOutcome, Decision, Plan


@dataclass(frozen=True, slots=True)
class PlanNotes:
    """What a plan carries in addition to its choice, see `Plan`. The last of `remarks` that is not empty is the second
    clause of the decision's detail."""

    remarks: tuple[str, ...] = ()
    switched_off_choice: RouteChoice | None = None
    is_tighter: bool = False
    full_ttft_ms: float | None = None
    routes: tuple[Candidate, ...] = ()


NO_NOTES = PlanNotes()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The prompt that is planned, and what was done with it before; milliseconds."""

    tokens: TokenizedPrompt
    target: ModelInfo
    replica: ReplicaRef
    tokenize_ms: float = 0.0
    prefill_ms: float = 0.0

    @classmethod
    def of(cls, context: RequestContext, prefill_ms: float = 0.0) -> _Prompt:
        return cls(context.tokens, context.target, context.replica, context.tokenize_ms, prefill_ms)

    @classmethod
    def again(cls, plan: Plan) -> _Prompt:
        return cls(plan.tokens, plan.decision.target, plan.replica)


@dataclass(frozen=True, slots=True)
class _Reported:
    """What draft and cache reported, now or for the earlier turn that is `continued`; see `Decision`."""

    draft: ModelInfo | None = None
    coverage: float | None = None
    kv_coverage: float | None = None
    cache: CacheOutcome = CacheOutcome.NOT_USED
    cache_ms: float = 0.0
    draft_ms: float = 0.0
    draft_queue_ms: float = 0.0
    draft_cached_tokens: int = 0
    continued: bool = False


_NOTHING_REPORTED = _Reported()


def undrafted_plan(
    context: RequestContext, choice: RouteChoice, notes: PlanNotes = NO_NOTES, prefill_ms: float = 0.0
) -> Plan:
    """The plan that reads the whole prompt, without a draft: it keeps all KV, or the target selects by itself."""
    return _undrafted(_Prompt.of(context, prefill_ms), choice, notes)


def compressed_plan(context: RequestContext, result: DraftResult, notes: PlanNotes = NO_NOTES) -> Plan:
    """The plan of a prompt that the draft has compressed under the choice's policy."""
    assert result.compressed is not None, "without a compressed prompt the plan is full"
    planned = _Prompt.of(context, result.prefill_ms)
    return _compressed(planned, result.choice, result.compressed, notes, result.importance)


def continued_plan(
    context: RequestContext, choice: RouteChoice, stored: StoredSelection, notes: PlanNotes = NO_NOTES
) -> Plan:
    """The plan of a later turn: the selection of the earlier turn, and every token since."""
    assert choice.policy is not None and choice.policy.kv_stage is not None, "only dropped KV is continued"
    kv_plan = replace(stored.kv_plan, policy=choice.policy.kv_stage, keep_full_prefix=bool(choice.keep_full_prefix))
    kept = np.ones(context.inputs.prompt_tokens, dtype=np.bool_)
    if kv_plan.kv_mask is not None:
        kept[: kv_plan.prompt_tokens] = kv_plan.kv_mask.kept[0, 0]
    reported = _Reported(stored.draft, stored.coverage, stored.kv_coverage, continued=True)
    return _plan(_Prompt.of(context), choice, notes, kv_plan=kv_plan, kept=kept, reported=reported)


def replanned_undrafted(plan: Plan, choice: RouteChoice) -> Plan:
    """The plan of the same request in full, or under a choice without a draft, for the quality guard."""
    return _undrafted(_Prompt.again(plan), choice, NO_NOTES)


def replanned_compressed(plan: Plan, choice: RouteChoice, compressed: CompressionResult) -> Plan:
    """The plan of the same request under another, compressing choice, for the quality guard."""
    return _compressed(_Prompt.again(plan), choice, compressed, NO_NOTES)


def stored_selection(plan: Plan) -> StoredSelection | None:
    """What a later turn needs to continue this plan; None if its prompt was compressed or read in full, or if its
    answer began on the full KV, which leaves no entry."""
    decision, kv_plan = plan.decision, plan.kv_plan
    if kv_plan is None or decision.policy is None or decision.policy.prompt_stage is not None:
        return None
    if kv_plan.policy.first_full_tokens:
        return None
    covers = kv_plan.prompt_tokens or decision.prompt_tokens
    return StoredSelection(
        replace(kv_plan, prompt_tokens=covers), decision.draft, decision.coverage, decision.kv_coverage
    )


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


def _undrafted(planned: _Prompt, choice: RouteChoice, notes: PlanNotes) -> Plan:
    kv_plan, policy = None, choice.policy
    if policy is not None:
        assert policy.kv_stage is not None and not policy.needs_draft, "no draft has selected"
        kv_plan = KvPlan(policy.kv_stage, planned.tokens.protected, keep_full_prefix=bool(choice.keep_full_prefix))
    return _plan(planned, choice, notes, kv_plan=kv_plan)


def _compressed(
    planned: _Prompt,
    choice: RouteChoice,
    compressed: CompressionResult,
    notes: PlanNotes,
    importance: NDArray[np.float32] | None = None,
) -> Plan:
    policy, prompt = choice.policy, compressed.prompt
    assert policy is not None, "the draft is asked only for a policy"
    is_free = "; " not in choice.detail  # its own second clause, of a limit, says more
    remarks = (capacity_text(policy, prompt), *notes.remarks) if is_free else notes.remarks
    return _plan(
        planned,
        choice,
        replace(notes, remarks=remarks),
        kv_plan=kv_plan_of(choice, prompt, planned.tokens),
        # Without a prompt stage everything is read, whatever the mask says about the KV.
        read=None if policy.prompt_stage is None else prompt.mask.kept,
        kept=prompt.mask.kept,
        importance=importance,
        reported=_Reported(
            prompt.draft,
            prompt.coverage,
            prompt.kv_coverage,
            compressed.cache,
            compressed.cache_ms,
            compressed.draft_ms,
            compressed.draft_queue_ms,
            compressed.draft_cached_tokens,
        ),
    )


def _plan(
    planned: _Prompt,
    choice: RouteChoice,
    notes: PlanNotes,
    *,
    kv_plan: KvPlan | None = None,
    read: NDArray[np.bool_] | None = None,
    kept: NDArray[np.bool_] | None = None,
    importance: NDArray[np.float32] | None = None,
    reported: _Reported = _NOTHING_REPORTED,
) -> Plan:
    """`read` marks the tokens that the target reads, None for all of them; `kept` those that remain, None for
    `read`."""
    tokens = planned.tokens
    prompt_tokens = int(tokens.ids.size)
    read = np.ones(prompt_tokens, dtype=np.bool_) if read is None else read
    read_tokens = int(np.count_nonzero(read))
    decision = Decision(
        route=choice.route,
        reason=choice.reason,
        detail=reduce(with_clause, notes.remarks, choice.detail),
        prompt_tokens=prompt_tokens,
        kept_tokens=read_tokens,
        kv_tokens=read_tokens if kv_plan is None else kv_plan.held_tokens(read_tokens),
        protected_tokens=sum(map(len, tokens.protected)),
        target=planned.target,
        tokenize_ms=planned.tokenize_ms,
        policy=choice.policy,
        draft=reported.draft,
        coverage=reported.coverage,
        cache=reported.cache,
        cache_ms=reported.cache_ms,
        draft_ms=reported.draft_ms,
        draft_queue_ms=reported.draft_queue_ms,
        draft_cached_tokens=reported.draft_cached_tokens,
        prefill_ms=planned.prefill_ms,
        keep_full_prefix=choice.keep_full_prefix,
        continued=reported.continued,
        forecast=choice.forecast,
        kv_coverage=reported.kv_coverage,
    )
    return Plan(
        decision,
        tokens.ids if read_tokens == prompt_tokens else tokens.ids[read],
        read if kept is None else kept,
        tokens,
        kv_plan,
        importance=importance,
        switched_off_choice=notes.switched_off_choice,
        is_tighter=notes.is_tighter,
        routes=notes.routes,
        replica=planned.replica,
        full_ttft_ms=notes.full_ttft_ms,
    )
