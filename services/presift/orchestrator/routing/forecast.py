"""Forecasting: from a choice to the work it makes and what that is predicted to cost. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import BudgetExceeded, DraftUnavailable
from presift.core.plan import Route
from presift.core.policies import POLICIES, KvSelection, Policy, SpecKv
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.routing.choice import Facts, Reason, RouteChoice
from presift.orchestrator.routing.cost_model import Forecast, RouteWork, SystemState, TokenWork

_FULL = RouteChoice(Route.FULL, Reason.REQUESTED, "")


def forecast(choice: RouteChoice, facts: Facts) -> Forecast:
    """What the choice is predicted to cost."""
    return facts.outlook.forecast(work_of(choice, facts.prompt_tokens, facts.outlook), facts.max_new_tokens)


def in_full(facts: Facts) -> Forecast:
    """What reading the whole prompt is predicted to cost, whatever is chosen."""
    return facts.outlook.forecast(work_of(_FULL, facts.prompt_tokens, facts.outlook), facts.max_new_tokens)


def with_forecast(choice: RouteChoice, budget: Budget, facts: Facts) -> RouteChoice:
    """The choice and its forecast; says so where it is later than the budget. Raises BudgetExceeded (if strict)."""
    found, limit = forecast(choice, facts), budget.max_ttft_ms
    if limit is None or found.ttft_ms <= limit:
        return replace(choice, forecast=found)
    late = f"{choice.detail}; {choice.route} is predicted at {found.ttft_ms:.0f} ms, over max_ttft_ms {limit}"
    if budget.strict:
        value, allowed = round(found.ttft_ms), f"<= {limit} ms"
        raise BudgetExceeded("budget.max_ttft_ms", value, allowed, f"strict budget not met: {late}")
    return replace(choice, forecast=found, detail=late)


def answering_s(facts: Facts) -> float | None:
    """Seconds that the target is predicted to need for the whole prompt and its answer; None where its speed was never
    observed."""
    outlook = facts.outlook
    if not outlook.speeds.target.observations:
        return None
    work = RouteWork(rest(facts.prompt_tokens, outlook.cached_tokens), facts.prompt_tokens, facts.prompt_tokens)
    found = outlook.forecast(work, facts.max_new_tokens)
    return (found.target_ms + found.step_ms * facts.max_new_tokens) / 1000


def work_of(choice: RouteChoice, prompt_tokens: int, outlook: SystemState) -> RouteWork:
    """What the route makes of the prompt; a mask is taken to be as long as it may be, also where its capacity adapts:
    how much a coverage takes is not known before the draft has read the prompt."""
    policy = choice.policy
    if policy is None:
        return RouteWork(rest(prompt_tokens, outlook.cached_tokens), prompt_tokens, prompt_tokens)
    if choice.continued_tokens is not None and policy.kv_stage is not None:
        return _continued(policy.kv_stage, prompt_tokens, choice.continued_tokens, outlook)
    compressed_as = policy.canonical()
    known = dict(outlook.compressed).get(compressed_as) if outlook.compressed else None
    draft = None if known is not None else draft_reading(policy, prompt_tokens)
    read_tokens, cached_tokens, beside = prompt_tokens, outlook.cached_tokens, None
    if policy.prompt_stage is not None:
        read_tokens, cached_tokens = policy.prompt_stage.capacity, known or 0
    elif draft is not None and outlook.reads_beside and choice.keep_full_prefix:
        beside, cached_tokens = rest(prompt_tokens, cached_tokens), prompt_tokens - 1
    if policy.kv_stage is None:
        return RouteWork(rest(read_tokens, cached_tokens), read_tokens, read_tokens, draft, beside)
    has_entry = bool(outlook.entries) and compressed_as in outlook.entries
    work = _selected(policy.kv_stage, read_tokens, cached_tokens, has_entry=has_entry)
    return replace(work, draft=draft, beside=beside)


def draft_reading(policy: Policy, prompt_tokens: int) -> TokenWork:
    """The draft's work for this policy: it reads the prompt, and generates what scoring or choosing needs."""
    return TokenWork(prompt_tokens, steps=policy.draft_steps)


def check_draft_reads(choice: RouteChoice, facts: Facts) -> None:
    """Raise DraftUnavailable where the draft cannot read this prompt, unless it is known to be compressed already."""
    if choice.policy is None or not facts.draft_context_tokens:
        return
    reading = draft_reading(choice.policy, facts.prompt_tokens)
    if reading.new_tokens + reading.steps <= facts.draft_context_tokens:
        return
    if choice.policy.canonical() not in dict(facts.outlook.compressed):
        needed = f"{reading.new_tokens} prompt tokens and {reading.steps} of lookahead"
        raise DraftUnavailable(f"the draft reads at most {facts.draft_context_tokens} tokens, not {needed}")


def scoring_reading(policy: SpecKv, read_tokens: int) -> TokenWork | None:
    """The rows that choose, behind what they choose from; None where the draft chose."""
    if policy.selection is KvSelection.DRAFT_MASK:
        return None
    return TokenWork(policy.window + policy.lookahead_tokens, read_tokens)


def reads_all(route: Route) -> bool:
    """Whether the target reads the whole prompt on this route."""
    return route not in POLICIES or POLICIES[route].reads_whole_prompt


def _selected(policy: SpecKv, read_tokens: int, cached_tokens: int, *, has_entry: bool) -> RouteWork:
    """TokenWork, and then choosing KV by a lookahead that is read too; of an entry only the final token is read."""
    held = min(policy.capacity + 1, read_tokens)
    if has_entry:
        return RouteWork(rest(held, held), read_tokens, held)
    reading = rest(read_tokens + policy.lookahead_tokens, cached_tokens)
    return RouteWork(reading, read_tokens, held, scoring=scoring_reading(policy, read_tokens))


def _continued(policy: SpecKv, prompt_tokens: int, held: int, outlook: SystemState) -> RouteWork:
    """A later turn needs no draft. It reads what came since, or, where the entry is gone, all that is not cached."""
    if any(_comes_to(asked, policy) for asked in outlook.entries):
        return RouteWork(rest(held, policy.capacity), prompt_tokens, held)
    return replace(_selected(policy, prompt_tokens, outlook.cached_tokens, has_entry=False), kv_tokens=held)


def _comes_to(asked: object, policy: SpecKv) -> bool:
    """Whether what was asked for is this policy, its capacity settled."""
    if isinstance(asked, SpecKv) and asked.adaptive is not None:
        asked = replace(asked, capacity=policy.capacity, adaptive=None)
    return asked == policy.canonical()


def rest(tokens: int, cached_tokens: int) -> TokenWork:
    """What is left to read; the final token always is."""
    past = max(0, min(cached_tokens, tokens - 1))
    return TokenWork(tokens - past, past)
