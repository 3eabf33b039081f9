"""Learning: from an answer to what it says of the stages' speeds. What waited, or was not done, says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from presift.core.policies import SpecKv, SpecKvPc
from presift.orchestrator.costs import Reading
from presift.orchestrator.decision import CacheUse, Plan
from presift.orchestrator.forecasting import draft_reading, rest, scoring_reading
from presift.orchestrator.places import place_of
from presift.orchestrator.ports import Usage
from presift.orchestrator.speeds import SpeedBook

# Fewer say little of a decode step.
_LEAST_STEPS = 4
# Of the draft's time: a draft that waited longer did not work side by side with the target.
_SIDE_BY_SIDE = 0.1


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that was given: the plan, the target's usage, the whole time, whether it was read alone, its tokens."""

    plan: Plan
    usage: Usage
    ttft_ms: float
    total_ms: float
    was_alone: bool
    token_ids: tuple[int, ...] = ()
    began: float = inf


def learn(book: SpeedBook, answered: Answered, held_tokens: int) -> None:
    """Observe every stage that this answer tells of. `held_tokens` of the prompt were expected at the target."""
    _learn_draft(book, answered, held_tokens)
    _learn_target(book, answered)
    _learn_decoding(book, answered)


def _learn_draft(book: SpeedBook, answered: Answered, held_tokens: int) -> None:
    decision = answered.plan.decision
    if decision.cache is not CacheUse.MISS or decision.draft is None or decision.policy is None:
        return
    draft, target = place_of(decision.draft), place_of(decision.target, answered.usage.replica)
    reading, speeds = draft_reading(decision.policy, decision.prompt_tokens), book.speeds(draft, target)
    if decision.prefill_ms == 0.0 or not speeds.draft.observations:
        book.observe("draft", draft, reading, decision.draft_ms - decision.draft_queue_ms)
        return
    if decision.draft_queue_ms > _SIDE_BY_SIDE * decision.draft_ms:
        return
    beside_ms = speeds.target.ms(rest(decision.prompt_tokens, held_tokens))
    took_ms = max(decision.draft_ms, decision.prefill_ms)
    book.observe_side_by_side(speeds.draft.ms(reading), beside_ms, took_ms)


def _learn_target(book: SpeedBook, answered: Answered) -> None:
    plan, usage = answered.plan, answered.usage
    decision, target = plan.decision, place_of(plan.decision.target, usage.replica)
    if not answered.was_alone or usage.reused_entry or decision.continued:
        return
    lookahead = 0 if plan.kv_plan is None else len(plan.kv_plan.lookahead_token_ids)
    choosing_ms = usage.score_ms + usage.publish_ms
    reading = rest(decision.kept_tokens + lookahead, usage.cached_tokens)
    book.observe("target", target, reading, usage.ttft_ms - choosing_ms)
    policy = decision.policy.kv if isinstance(decision.policy, SpecKvPc) else decision.policy
    scoring = scoring_reading(policy, decision.kept_tokens) if isinstance(policy, SpecKv) else None
    if scoring is not None and plan.kv_plan is not None:
        book.observe("scoring", target, scoring, choosing_ms)


def _learn_decoding(book: SpeedBook, answered: Answered) -> None:
    usage, steps = answered.usage, answered.usage.completion_tokens - 1
    if steps >= _LEAST_STEPS:
        step_ms = (answered.total_ms - answered.ttft_ms) / steps
        book.observe(
            "decoding", place_of(answered.plan.decision.target, usage.replica), Reading(usage.kv_tokens), step_ms
        )
