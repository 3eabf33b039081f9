"""Observations: which stage costs an answer shows. Work that waited, or was skipped, shows none."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.estimation.perf_model import PerfModel, location_of
from presift.orchestrator.routing.cost_model import TokenWork
from presift.orchestrator.routing.decision import CacheOutcome, Decision, Plan
from presift.orchestrator.routing.forecast import draft_work, remaining, selection_work

# With fewer steps the time of one is too noisy.
_LEAST_STEPS = 4
# A draft that waited for more than this share of its time did not run at the same time as the target.
_SIDE_BY_SIDE = 0.1


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
    lookahead = 0 if plan.kv_plan is None else len(plan.kv_plan.lookahead_token_ids)
    selection_ms = usage.score_ms + usage.publish_ms
    work = remaining(decision.kept_tokens + lookahead, usage.cached_tokens)
    perf.observe("target", target, work, usage.ttft_ms - selection_ms)
    kv_stage = None if decision.policy is None else decision.policy.kv_stage
    selection = None if kv_stage is None else selection_work(kv_stage, decision.kept_tokens)
    if selection is not None and plan.kv_plan is not None:
        perf.observe("scoring", target, selection, selection_ms)


def _learn_decoding(perf: PerfModel, answer: AnswerObservation) -> None:
    usage, steps = answer.usage, answer.usage.completion_tokens - 1
    if steps >= _LEAST_STEPS:
        step_ms = (answer.total_ms - answer.ttft_ms) / steps
        perf.observe(
            "decoding", location_of(answer.plan.decision.target, usage.replica), TokenWork(usage.kv_tokens), step_ms
        )
