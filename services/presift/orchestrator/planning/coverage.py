"""Coverage: a plan whose draft covered less than was asked for gives way to a less lossy one.

Where the target chooses KV, what counts is the draft's estimate of what as many pairs would cover.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import numpy as np

from presift.core.errors import PromptTooLong
from presift.core.policies import Policy
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.planning.conversations import StoredSelection
from presift.orchestrator.routing.auto import less_lossy
from presift.orchestrator.routing.candidates import Question
from presift.orchestrator.routing.choice import RouteChoice
from presift.orchestrator.routing.decision import Plan

# A choice that has a policy -> the plan that the draft makes of it, and the choice as it is after asking.
Ask = Callable[[RouteChoice], Awaitable[tuple[Plan, RouteChoice]]]
# What the stages of a plan cover, 0..1 each; None where the draft did not say.
Coverages = tuple[float | None, ...]


async def resolve(choice: RouteChoice, ask: Ask, question: Callable[[], Question]) -> Plan | RouteChoice:
    """The plan of the first choice that covers enough, or a choice for which no draft is needed.

    `question` says what is to be chosen by at the time of asking. Raises BudgetExceeded (only if strict).
    """
    while choice.policy is not None:  # each turn goes one route up the order
        plan, choice = await ask(choice)
        found, budget = coverages_of(plan), question().budget
        if covers(found, budget):
            return plan
        if is_unknown(found, budget) and not budget.strict:
            why = f"what it covers is not known, so min_coverage {budget.min_coverage:g} is not certain to be reached"
            return _told(plan, why)
        try:
            choice = less_lossy(choice, _least(found), question())
        except PromptTooLong as error:
            return _told(plan, f"covers less than min_coverage, but {error.message}")
    return choice


def covers(found: Coverages, budget: Budget) -> bool:
    """Whether every stage is known to cover what the caller asked for."""
    return budget.min_coverage is None or all(each is not None and _reaches(each, budget) for each in found)


def is_unknown(found: Coverages, budget: Budget) -> bool:
    """Whether a stage may cover too little, and none is known to."""
    return None in found and all(each is None or _reaches(each, budget) for each in found)


def coverages_of(plan: Plan) -> Coverages:
    """By stage; empty where the draft had no part."""
    decision = plan.decision
    if decision.policy is None:
        return ()
    if plan.kv_plan is None:  # of what is read no KV is dropped
        return (decision.coverage,)
    return _stages(decision.policy, decision.coverage, decision.kv_coverage)


def coverages_of_turn(turn: StoredSelection) -> Coverages:
    """Of the selection that a later turn would go on with."""
    return _stages(turn.kv_plan.policy, turn.coverage, turn.kv_coverage)


def _stages(policy: Policy, coverage: float | None, kv_coverage: float | None) -> Coverages:
    of_mask = () if policy.mask_policy is None else (coverage,)
    return of_mask if policy.lookahead_policy is None else (*of_mask, kv_coverage)


def _reaches(coverage: float, budget: Budget) -> bool:
    # As float32, as coverages travel: a policy file's 0.9 is no more than a caller's.
    return budget.min_coverage is None or bool(np.float32(coverage) >= np.float32(budget.min_coverage))


def _least(found: Iterable[float | None]) -> float | None:
    return min((each for each in found if each is not None), default=None)


def _told(plan: Plan, why: str) -> Plan:
    return replace(plan, decision=replace(plan.decision, detail=f"{plan.decision.detail}; {why}"))
