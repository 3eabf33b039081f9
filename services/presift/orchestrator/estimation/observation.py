"""Learning: from an answer to what it says of the stages' speeds. What waited, or was not done, says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.estimation.location import location_of
from presift.orchestrator.estimation.perf_model import PerfModel
from presift.orchestrator.routing.cost_model import TokenWork
from presift.orchestrator.routing.decision import CacheOutcome, Plan
from presift.orchestrator.routing.forecast import draft_work, remaining, selection_work

# Fewer say little of a decode step.
_LEAST_STEPS = 4
# Of the draft's time: a draft that waited longer did not work side by side with the target.
_SIDE_BY_SIDE = 0.1


@dataclass(frozen=True, slots=True)
class AnswerObservation:
    """An answer that was given: the plan, the target's usage, the whole time, whether it was read alone, its tokens."""

    plan: Plan
    usage: Usage
    ttft_ms: float
    total_ms: float
    was_alone: bool
    token_ids: tuple[int, ...] = ()
    began: float = inf


def learn(book: PerfModel, answered: AnswerObservation, held_tokens: int) -> None:
    """Observe every stage that this answer tells of. `held_tokens` of the prompt were expected at the target."""
    _learn_draft(book, answered, held_tokens)
    _learn_target(book, answered)
    _learn_decoding(book, answered)


def _learn_draft(book: PerfModel, answered: AnswerObservation, held_tokens: int) -> None:
    decision = answered.plan.decision
    if decision.cache is not CacheOutcome.MISS or decision.draft is None or decision.policy is None:
        return
    draft, target = location_of(decision.draft), location_of(decision.target, answered.usage.replica)
    reading, speeds = draft_work(decision.policy, decision.prompt_tokens), book.costs(draft, target)
    if decision.prefill_ms == 0.0 or not speeds.draft.observations:
        book.observe("draft", draft, reading, decision.draft_ms - decision.draft_queue_ms)
        return
    if decision.draft_queue_ms > _SIDE_BY_SIDE * decision.draft_ms:
        return
    beside_ms = speeds.target.ms(remaining(decision.prompt_tokens, held_tokens))
    took_ms = max(decision.draft_ms, decision.prefill_ms)
    book.observe_side_by_side(speeds.draft.ms(reading), beside_ms, took_ms)


def _learn_target(book: PerfModel, answered: AnswerObservation) -> None:
    plan, usage = answered.plan, answered.usage
    decision, target = plan.decision, location_of(plan.decision.target, usage.replica)
    if not answered.was_alone or usage.reused_entry or decision.continued:
        return
    lookahead = 0 if plan.kv_plan is None else len(plan.kv_plan.lookahead_token_ids)
    choosing_ms = usage.score_ms + usage.publish_ms
    reading = remaining(decision.kept_tokens + lookahead, usage.cached_tokens)
    book.observe("target", target, reading, usage.ttft_ms - choosing_ms)
    kv_stage = None if decision.policy is None else decision.policy.kv_stage
    scoring = None if kv_stage is None else selection_work(kv_stage, decision.kept_tokens)
    if scoring is not None and plan.kv_plan is not None:
        book.observe("scoring", target, scoring, choosing_ms)


def _learn_decoding(book: PerfModel, answered: AnswerObservation) -> None:
    usage, steps = answered.usage, answered.usage.completion_tokens - 1
    if steps >= _LEAST_STEPS:
        step_ms = (answered.total_ms - answered.ttft_ms) / steps
        book.observe(
            "decoding", location_of(answered.plan.decision.target, usage.replica), TokenWork(usage.kv_tokens), step_ms
        )
