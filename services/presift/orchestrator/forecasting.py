"""Forecasting: from a choice to the work it makes and what that is predicted to cost. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import BudgetExceeded, DraftUnavailable
from presift.core.plan import Route
from presift.core.policies import KvSelection, Policy, SpecKv, SpecKvPc, SpecPc
from presift.orchestrator.choices import Choice, Facts, Reason
from presift.orchestrator.costs import Forecast, Outlook, Reading, Work
from presift.orchestrator.request import Budget

_FULL = Choice(Route.FULL, Reason.REQUESTED, "")


def forecast(choice: Choice, facts: Facts) -> Forecast:
    """What the choice is predicted to cost."""
    return facts.outlook.forecast(work_of(choice, facts.prompt_tokens, facts.outlook), facts.max_new_tokens)


def in_full(facts: Facts) -> Forecast:
    """What reading the whole prompt is predicted to cost, whatever is chosen."""
    return facts.outlook.forecast(work_of(_FULL, facts.prompt_tokens, facts.outlook), facts.max_new_tokens)


def with_forecast(choice: Choice, budget: Budget, facts: Facts) -> Choice:
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
    work = Work(rest(facts.prompt_tokens, outlook.cached_tokens), facts.prompt_tokens, facts.prompt_tokens)
    found = outlook.forecast(work, facts.max_new_tokens)
    return (found.target_ms + found.step_ms * facts.max_new_tokens) / 1000


def work_of(choice: Choice, prompt_tokens: int, outlook: Outlook) -> Work:
    """What the route makes of the prompt; a mask is taken to be as long as it may be, also where its capacity adapts:
    how much a coverage takes is not known before the draft has read the prompt."""
    policy = choice.policy
    if policy is None:
        return Work(rest(prompt_tokens, outlook.cached_tokens), prompt_tokens, prompt_tokens)
    if choice.continued_tokens is not None and isinstance(policy, SpecKv):
        return _continued(policy, prompt_tokens, choice.continued_tokens, outlook)
    known = dict(outlook.compressed).get(bare(policy)) if outlook.compressed else None
    draft = None if known is not None else draft_reading(policy, prompt_tokens)
    if isinstance(policy, SpecPc):
        return Work(rest(policy.capacity, known or 0), policy.capacity, policy.capacity, draft)
    has_entry = bool(outlook.entries) and bare(policy) in outlook.entries
    if isinstance(policy, SpecKvPc):
        work = _selected(policy.kv, policy.prompt.capacity, known or 0, has_entry=has_entry)
        return replace(work, draft=draft)
    beside = None
    if draft is not None and outlook.reads_beside and choice.keep_full_prefix:
        beside = rest(prompt_tokens, outlook.cached_tokens)
    cached_tokens = outlook.cached_tokens if beside is None else prompt_tokens - 1
    work = _selected(policy, prompt_tokens, cached_tokens, has_entry=has_entry)
    return replace(work, draft=draft, beside=beside)


def draft_reading(policy: Policy, prompt_tokens: int) -> Reading:
    """What the draft does for this policy: it reads the prompt, and generates what scoring or choosing needs."""
    if isinstance(policy, SpecPc):
        steps = policy.lookahead_tokens - 1
    elif isinstance(policy, SpecKvPc):
        steps = max(policy.prompt.lookahead_tokens - 1, policy.kv.lookahead_tokens)
    elif policy.selection is KvSelection.DRAFT_MASK:
        steps = policy.draft_policy.lookahead_tokens - 1
    elif policy.adaptive is not None:  # importance is scored to count by
        steps = max(policy.draft_policy.lookahead_tokens - 1, policy.lookahead_tokens)
    else:
        steps = policy.lookahead_tokens
    return Reading(prompt_tokens, steps=steps)


def check_draft_reads(choice: Choice, facts: Facts) -> None:
    """Raise DraftUnavailable where the draft cannot read this prompt, unless it is known to be compressed already."""
    if choice.policy is None or not facts.draft_context_tokens:
        return
    reading = draft_reading(choice.policy, facts.prompt_tokens)
    if reading.new_tokens + reading.steps <= facts.draft_context_tokens:
        return
    if bare(choice.policy) not in dict(facts.outlook.compressed):
        needed = f"{reading.new_tokens} prompt tokens and {reading.steps} of lookahead"
        raise DraftUnavailable(f"the draft reads at most {facts.draft_context_tokens} tokens, not {needed}")


def scoring_reading(policy: SpecKv, read_tokens: int) -> Reading | None:
    """The rows that choose, behind what they choose from; None where the draft chose."""
    if policy.selection is KvSelection.DRAFT_MASK:
        return None
    return Reading(policy.window + policy.lookahead_tokens, read_tokens)


def bare(policy: Policy) -> Policy:
    """The policy without what depends on the draft: the same for a choice and for what the draft was asked."""
    if isinstance(policy, SpecPc):
        return replace(policy, start_layer=0)
    if isinstance(policy, SpecKvPc):
        return replace(policy, prompt=replace(policy.prompt, start_layer=0))
    return replace(policy, mask=None)


def reads_all(route: Route) -> bool:
    """Whether the target reads the whole prompt on this route."""
    return route in (Route.FULL, Route.SPEC_KV)


def _selected(policy: SpecKv, read_tokens: int, cached_tokens: int, *, has_entry: bool) -> Work:
    """Reading, and then choosing KV by a lookahead that is read too; of an entry only the final token is read."""
    held = min(policy.capacity + 1, read_tokens)
    if has_entry:
        return Work(rest(held, held), read_tokens, held)
    reading = rest(read_tokens + policy.lookahead_tokens, cached_tokens)
    return Work(reading, read_tokens, held, scoring=scoring_reading(policy, read_tokens))


def _continued(policy: SpecKv, prompt_tokens: int, held: int, outlook: Outlook) -> Work:
    """A later turn needs no draft. It reads what came since, or, where the entry is gone, all that is not cached."""
    if any(_comes_to(asked, policy) for asked in outlook.entries):
        return Work(rest(held, policy.capacity), prompt_tokens, held)
    return replace(_selected(policy, prompt_tokens, outlook.cached_tokens, has_entry=False), kv_tokens=held)


def _comes_to(asked: object, policy: SpecKv) -> bool:
    """Whether what was asked for is this policy, its capacity settled."""
    if isinstance(asked, SpecKv) and asked.adaptive is not None:
        asked = replace(asked, capacity=policy.capacity, adaptive=None)
    return asked == bare(policy)


def rest(tokens: int, cached_tokens: int) -> Reading:
    """What is left to read; the final token always is."""
    past = max(0, min(cached_tokens, tokens - 1))
    return Reading(tokens - past, past)
