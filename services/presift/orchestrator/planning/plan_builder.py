"""Builds plans: the tokens to read, the KV to keep and the decision, from a choice and the draft's answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo
from presift.orchestrator.domain.ports import ReplicaRef
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.compressor import CompressionResult
from presift.orchestrator.planning.conversations import StoredSelection
from presift.orchestrator.planning.kv_plan import kv_plan_of
from presift.orchestrator.planning.request_context import RequestContext
from presift.orchestrator.routing.adaptive_capacity import outcome
from presift.orchestrator.routing.candidates import Candidate
from presift.orchestrator.routing.choice import RouteChoice
from presift.orchestrator.routing.decision import Decision, Plan


@dataclass(frozen=True, slots=True)
class _Source:
    """The request that a plan is made for."""

    tokens: TokenizedPrompt
    target: ModelInfo
    tokenize_ms: float
    replica: ReplicaRef


def _source(context: RequestContext) -> _Source:
    return _Source(context.tokens, context.target, context.prompt.tokenize_ms, context.replica)


def _source_of(plan: Plan) -> _Source:
    return _Source(plan.tokens, plan.decision.target, 0.0, plan.replica)


@dataclass(frozen=True, slots=True)
class PlanNotes:
    """What a plan carries in addition to its choice; see `Plan`. `remarks` are appended to the decision's detail."""

    remarks: tuple[str, ...] = ()
    avoided: RouteChoice | None = None
    is_tighter: bool = False
    full_ttft_ms: float | None = None
    routes: tuple[Candidate, ...] = ()


NO_NOTES = PlanNotes()


def full_plan(
    context: RequestContext, choice: RouteChoice, notes: PlanNotes = NO_NOTES, prefill_ms: float = 0.0
) -> Plan:
    """The plan that reads the whole prompt and keeps all KV."""
    return _plan(_source(context), choice, None, None, notes, prefill_ms=prefill_ms)


def compressed_plan(
    context: RequestContext,
    choice: RouteChoice,
    compressed: CompressionResult,
    notes: PlanNotes = NO_NOTES,
    *,
    prefill_ms: float = 0.0,
    importance: NDArray[np.float32] | None = None,
) -> Plan:
    """The plan of a prompt that the draft has compressed under the choice's policy."""
    return _compressed(_source(context), choice, compressed, notes, prefill_ms=prefill_ms, importance=importance)


def continued_plan(
    context: RequestContext, choice: RouteChoice, stored: StoredSelection, notes: PlanNotes = NO_NOTES
) -> Plan:
    """The plan of a later turn: the selection of the earlier turn, and every token since."""
    kv_plan = replace(stored.kv_plan, keep_full_prefix=bool(choice.keep_full_prefix))
    kept = np.ones(context.inputs.prompt_tokens, dtype=np.bool_)
    if kv_plan.kv_mask is not None:
        kept[: kv_plan.prompt_tokens] = kv_plan.kv_mask.kept[0, 0]
    origin: dict[str, Any] = {
        "draft": stored.draft,
        "coverage": stored.coverage,
        "kv_coverage": stored.kv_coverage,
    }
    return _plan(_source(context), choice, kv_plan, None, notes, kept=kept, continued=True, **origin)


def replanned_full(plan: Plan, choice: RouteChoice) -> Plan:
    """The plan of the same request in full, for the quality guard."""
    return _plan(_source_of(plan), choice, None, None, NO_NOTES)


def replanned_compressed(plan: Plan, choice: RouteChoice, compressed: CompressionResult) -> Plan:
    """The plan of the same request under another, compressing choice, for the quality guard."""
    return _compressed(_source_of(plan), choice, compressed, NO_NOTES)


def stored_selection(plan: Plan) -> StoredSelection | None:
    """What a later turn needs to continue this plan; None if its prompt was compressed or read in full."""
    decision, kv_plan = plan.decision, plan.kv_plan
    if kv_plan is None or decision.draft is None or decision.policy is None or decision.policy.prompt_stage is not None:
        return None
    covers = kv_plan.prompt_tokens or decision.prompt_tokens
    return StoredSelection(
        replace(kv_plan, prompt_tokens=covers), decision.draft, decision.coverage, decision.kv_coverage
    )


def _compressed(
    source: _Source,
    choice: RouteChoice,
    compressed: CompressionResult,
    notes: PlanNotes,
    *,
    prefill_ms: float = 0.0,
    importance: NDArray[np.float32] | None = None,
) -> Plan:
    policy, prompt = choice.policy, compressed.prompt
    assert policy is not None, "the draft is asked only for a policy"
    remarks = tuple(filter(None, (outcome(policy, prompt), *notes.remarks)))
    if not prompt.draft.shares_vocabulary(source.target):
        remarks = (*remarks, "drafted in another vocabulary, mapped through the text")
    return _plan(
        source,
        choice,
        kv_plan_of(choice, prompt, source.tokens),
        # Without a prompt stage everything is read, whatever the mask says about the KV.
        None if policy.prompt_stage is None else prompt.mask.kept,
        notes if remarks == notes.remarks else replace(notes, remarks=remarks),
        kept=prompt.mask.kept,
        importance=importance,
        draft=prompt.draft,
        coverage=prompt.coverage,
        kv_coverage=prompt.kv_coverage,
        cache=compressed.cache,
        cache_ms=compressed.cache_ms,
        draft_ms=compressed.draft_ms,
        draft_queue_ms=compressed.draft_queue_ms,
        prefill_ms=prefill_ms,
    )


def _plan(
    source: _Source,
    choice: RouteChoice,
    kv_plan: KvPlan | None,
    read: NDArray[np.bool_] | None,
    notes: PlanNotes,
    *,
    kept: NDArray[np.bool_] | None = None,
    importance: NDArray[np.float32] | None = None,
    **reported: Any,
) -> Plan:
    """`read` marks the tokens that the target reads, None for all of them; `kept` those that remain, None for `read`.
    `reported` are further fields of the decision: what draft and cache reported.
    """
    tokens = source.tokens
    prompt_tokens = int(tokens.ids.size)
    read = np.ones(prompt_tokens, dtype=np.bool_) if read is None else read
    read_tokens = int(np.count_nonzero(read))
    decision = Decision(
        route=choice.route,
        reason=choice.reason,
        detail="; ".join(filter(None, (choice.detail, *notes.remarks))),
        prompt_tokens=prompt_tokens,
        kept_tokens=read_tokens,
        kv_tokens=read_tokens if kv_plan is None else kv_plan.held_tokens(read_tokens),
        protected_tokens=sum(len(span) for span in tokens.protected),
        target=source.target,
        tokenize_ms=source.tokenize_ms,
        policy=choice.policy,
        keep_full_prefix=choice.keep_full_prefix,
        forecast=choice.forecast,
        **reported,
    )
    return Plan(
        decision,
        tokens.ids if read_tokens == prompt_tokens else tokens.ids[read],
        read if kept is None else kept,
        tokens,
        kv_plan,
        importance=importance,
        avoided=notes.avoided,
        is_tighter=notes.is_tighter,
        routes=notes.routes,
        replica=source.replica,
        full_ttft_ms=notes.full_ttft_ms,
    )
