"""Coverage: a plan whose draft covered less than was asked for gives way to a less lossy one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from presift.core.errors import PromptTooLong
from presift.orchestrator.auto import less_lossy
from presift.orchestrator.candidates import Question
from presift.orchestrator.choices import Choice
from presift.orchestrator.decision import Plan
from presift.orchestrator.request import Budget

# A choice that has a policy -> the plan that the draft makes of it, and the choice as it is after asking.
Ask = Callable[[Choice], Awaitable[tuple[Plan, Choice]]]


async def settled(choice: Choice, ask: Ask, question: Callable[[], Question]) -> Plan | Choice:
    """The plan of the first choice that covers enough, or a choice for which no draft is needed.

    `question` says what is to be chosen by at the time of asking. Raises BudgetExceeded (only if strict).
    """
    while choice.policy is not None:  # each turn goes one route up the order
        plan, choice = await ask(choice)
        if covers(plan.decision.coverage, question().budget):
            return plan
        try:
            choice = less_lossy(choice, plan.decision.coverage or 0.0, question())
        except PromptTooLong as error:
            detail = f"{plan.decision.detail}; covers less than min_coverage, but {error.message}"
            return replace(plan, decision=replace(plan.decision, detail=detail))
    return choice


def covers(coverage: float | None, budget: Budget) -> bool:
    """Whether the draft's mask, as far as it drew one, covers what the caller asked for."""
    return coverage is None or budget.min_coverage is None or coverage >= budget.min_coverage
