"""Observations: which stage costs an answer shows. Work that waited, or was skipped, shows none."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from presift.core.generation import decode_steps
from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.estimation.perf_model import PerfModel, location_of
from presift.orchestrator.routing.cost_model import TokenWork
from presift.orchestrator.routing.decision import CacheOutcome, Decision, Plan
from presift.orchestrator.routing.forecast import draft_work, remaining, renewal_work, selection_work

# With fewer steps the time of one is too noisy.
_LEAST_STEPS = 4
# A draft that waited for more than this share of its time did not run at the same time as the target.
_SIDE_BY_SIDE = 0.1
# If renewals take more than this share of the time after the first token, the rest of it is too inexact.
_MOST_RENEWING = 0.5
# In an answer of fewer intervals the number of renewals is too inexact.
_LEAST_INTERVALS = 2


@dataclass(frozen=True, slots=True)
class AnswerObservation:
    """A complete answer. `was_uncontended`: nothing else was pending at the target while it read the prompt. `began`
    is the prefix index's `now` when the answer was requested."""

    plan: Plan
    usage: Usage
    ttft_ms: float
    total_ms: float
    was_uncontended: bool
    token_ids: tuple[int, ...] = ()
    began: float = inf


# The draft scored the prompt for this answer.
SCORED = (CacheOutcome.MISS, CacheOutcome.UNAVAILABLE)


def learn(perf: PerfModel, answer: AnswerObservation, held_tokens: int) -> None:
    """Record the cost of every stage that this answer shows. `held_tokens` is how much of the prompt was expected to be
    cached at the target."""
    _learn_draft(perf, answer, held_tokens)
    _learn_target(perf, answer)
    _learn_renewals(perf, answer)
    _learn_decoding(perf, answer)


def _learn_draft(perf: PerfModel, answer: AnswerObservation, held_tokens: int) -> None:
    decision = answer.plan.decision
    if decision.cache not in SCORED or decision.draft is None or decision.policy is None:
        return
    draft, target = location_of(decision.draft), location_of(decision.target, answer.usage.replica)
    work, costs = _draft_work(decision), perf.costs(draft, target)
    if decision.prefill_ms == 0.0 or not costs.draft.observations:
        perf.observe("draft", draft, work, decision.draft_ms - decision.draft_queue_ms)
        return
    if decision.draft_queue_ms > _SIDE_BY_SIDE * decision.draft_ms:
        return
    target_ms = costs.target.ms(remaining(decision.prompt_tokens, held_tokens))
    took_ms = max(decision.draft_ms, decision.prefill_ms)
    perf.observe_side_by_side(costs.draft.ms(work), target_ms, took_ms)


def _draft_work(decision: Decision) -> TokenWork:
    assert decision.policy is not None
    return draft_work(decision.policy, decision.prompt_tokens, decision.draft_cached_tokens)


def _learn_target(perf: PerfModel, answer: AnswerObservation) -> None:
    plan, usage = answer.plan, answer.usage
    decision, target = plan.decision, location_of(plan.decision.target, usage.replica)
    if not answer.was_uncontended or usage.reused_entry or decision.continued:
        return
    kv = None if plan.kv_plan is None else plan.kv_plan.policy
    lookahead = 0 if plan.kv_plan is None else len(plan.kv_plan.lookahead_token_ids)
    selects_first = kv is not None and not kv.first_full_tokens
    selection_ms = _selection_ms(answer) if selects_first else 0.0
    work = remaining(decision.kept_tokens + lookahead, usage.cached_tokens)
    perf.observe("target", target, work, usage.ttft_ms - selection_ms)
    kv_stage = None if decision.policy is None else decision.policy.kv_stage
    selection = None if kv_stage is None else selection_work(kv_stage, decision.kept_tokens)
    if selection is not None and selects_first:
        perf.observe("scoring", target, selection, selection_ms)


def _selection_ms(answer: AnswerObservation) -> float:
    """Milliseconds of one of the selections before and during the answer; the target reports their sum."""
    usage, kv_plan = answer.usage, answer.plan.kv_plan
    is_first_made = kv_plan is not None and not kv_plan.policy.first_full_tokens and not usage.reused_entry
    return (usage.score_ms + usage.publish_ms) / max(1, usage.renewals + is_first_made)


def _renewal(answer: AnswerObservation) -> TokenWork | None:
    """The work of each renewal of this answer; None if it had none."""
    kv_plan = answer.plan.kv_plan
    if kv_plan is None or not answer.usage.renewals:
        return None
    work = renewal_work(kv_plan.policy, answer.plan.decision.kept_tokens)
    return None if work is None else work.rows


def _learn_renewals(perf: PerfModel, answer: AnswerObservation) -> None:
    rows = _renewal(answer)
    if rows is not None:
        target = location_of(answer.plan.decision.target, answer.usage.replica)
        perf.observe("scoring", target, rows, _selection_ms(answer))
    usage, kv_plan = answer.usage, answer.plan.kv_plan
    if kv_plan is None:
        return
    every, tokens = kv_plan.policy.renew_every, usage.completion_tokens - kv_plan.policy.first_full_tokens
    # What was skipped shows nothing, and a short answer too little.
    if every and not usage.renewals_skipped and tokens >= _LEAST_INTERVALS * every:
        perf.observe_renewals(usage.renewals, tokens, every)


def _learn_decoding(perf: PerfModel, answer: AnswerObservation) -> None:
    usage = answer.usage
    steps = decode_steps(usage.completion_tokens, usage.accepted_tokens)
    if steps < _LEAST_STEPS:
        return
    target, rows = location_of(answer.plan.decision.target, usage.replica), _renewal(answer)
    decode_ms = answer.total_ms - answer.ttft_ms
    if rows is not None:
        # Reading the rows is not reported: it takes as long as predicted.
        renewals_ms = usage.renewals * (_selection_ms(answer) + perf.costs("", target).target.ms(rows))
        if renewals_ms > _MOST_RENEWING * decode_ms:
            return
        decode_ms -= renewals_ms
    perf.observe("decoding", target, TokenWork(_held_tokens(answer)), decode_ms / steps)


def _held_tokens(answer: AnswerObservation) -> int:
    """KV tokens of the prompt that a decode step held, on average: at first all of them, if the answer began so."""
    usage, kv_plan = answer.usage, answer.plan.kv_plan
    if kv_plan is None or not kv_plan.policy.first_full_tokens or not usage.kv_tokens_mean:
        return usage.kv_tokens
    return max(usage.kv_tokens, round(usage.kv_tokens_mean - usage.completion_tokens / 2))
