"""From a choice to the work that it makes, and to the predicted cost of that work. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import BudgetExceeded, DraftUnavailable
from presift.core.plan import Route
from presift.core.policies import POLICIES, KvSelection, Policy, SpecKv
from presift.orchestrator.routing.choice import OVER_A_LIMIT, Reason, RouteChoice, RoutingInputs, with_clause
from presift.orchestrator.routing.cost_model import Forecast, RenewalWork, RouteWork, SystemState, TokenWork

_FULL = RouteChoice(Route.FULL, Reason.REQUESTED, "")


def forecast(choice: RouteChoice, inputs: RoutingInputs) -> Forecast:
    """The predicted cost of a choice."""
    return inputs.state.forecast(work_of(choice, inputs.prompt_tokens, inputs.state), inputs.reserved_tokens)


def full_forecast(inputs: RoutingInputs) -> Forecast:
    """The predicted cost of the whole prompt, whatever was chosen."""
    return forecast(_FULL, inputs)


def with_forecast(choice: RouteChoice, inputs: RoutingInputs) -> RouteChoice:
    """The choice with its forecast; its detail says if it is slower than the budget. Raises BudgetExceeded (strict)."""
    found, limit = choice.forecast or forecast(choice, inputs), inputs.budget.max_ttft_ms
    if limit is None or found.ttft_ms <= limit:
        return choice if choice.forecast is found else replace(choice, forecast=found)
    late = choice.detail
    if choice.reason not in OVER_A_LIMIT:
        late = with_clause(late, f"predicted at {found.ttft_ms:.0f} ms, over max_ttft_ms {limit}")
    if inputs.budget.strict:
        value, allowed = round(found.ttft_ms), f"<= {limit} ms"
        raise BudgetExceeded("budget.max_ttft_ms", value, allowed, f"strict budget not met: {late}")
    return replace(choice, forecast=found, detail=late)


def answer_seconds(inputs: RoutingInputs) -> float | None:
    """Predicted seconds of the target for the whole prompt and its answer; None if its speed was never observed."""
    state = inputs.state
    if not state.costs.target.observations:
        return None
    work = RouteWork(remaining(inputs.prompt_tokens, state.cached_tokens), inputs.prompt_tokens, inputs.prompt_tokens)
    found = state.forecast(work, inputs.reserved_tokens)
    return (found.target_ms + found.step_ms * inputs.reserved_tokens) / 1000


def work_of(choice: RouteChoice, prompt_tokens: int, state: SystemState) -> RouteWork:
    """The work that a choice makes of a prompt.

    A mask counts with its largest size, also where its capacity adapts: how many tokens reach a coverage is unknown
    until the draft has read the prompt.
    """
    policy = choice.policy
    if policy is None:
        return RouteWork(remaining(prompt_tokens, state.cached_tokens), prompt_tokens, prompt_tokens)
    if choice.continued_tokens is not None and policy.kv_stage is not None:
        return _continued(policy.kv_stage, prompt_tokens, choice.continued_tokens, state)
    known = dict(state.compressed).get(policy.entry_policy) if state.compressed else None
    is_drafted = policy.needs_draft and known is None
    draft = draft_work(policy, prompt_tokens, state.draft_cached_tokens) if is_drafted else None
    read_tokens, cached_tokens, prefill = prompt_tokens, state.cached_tokens, None
    if policy.prompt_stage is not None:
        read_tokens, cached_tokens = policy.prompt_stage.capacity, known or 0
    elif draft is not None and state.prefills and choice.keep_full_prefix:
        prefill, cached_tokens = remaining(prompt_tokens, cached_tokens), prompt_tokens - 1
    if policy.kv_stage is None:
        return RouteWork(remaining(read_tokens, cached_tokens), read_tokens, read_tokens, draft, prefill)
    kv = policy.kv_stage
    held, renewal = min(kv.capacity + 1, read_tokens), renewal_work(kv, read_tokens)
    if kv.first_full_tokens:
        return RouteWork(remaining(read_tokens, cached_tokens), read_tokens, held, draft, prefill, renewal=renewal)
    if state.entries and policy.entry_policy in state.entries:  # only the last token is read
        return RouteWork(remaining(held, held), read_tokens, held, draft, prefill, renewal=renewal)
    return _selected(kv, read_tokens, cached_tokens, held, draft=draft, prefill=prefill)


def draft_work(policy: Policy, prompt_tokens: int, cached_tokens: int = 0) -> TokenWork:
    """The draft's work for a policy: it reads what it has not kept of the prompt, and generates the tokens that scoring
    or selection needs."""
    reading = remaining(prompt_tokens, cached_tokens)
    return TokenWork(reading.new_tokens, reading.past_tokens, policy.draft_steps)


def check_draft_reads(choice: RouteChoice, inputs: RoutingInputs) -> None:
    """Raise DraftUnavailable if the draft cannot read this prompt, unless its compressed prompt is known to exist."""
    if choice.policy is None or not choice.policy.needs_draft or not inputs.draft_context_tokens:
        return
    work = draft_work(choice.policy, inputs.prompt_tokens)
    if work.new_tokens + work.steps <= inputs.draft_context_tokens:
        return
    if choice.policy.entry_policy not in dict(inputs.state.compressed):
        needed = f"{work.new_tokens} prompt tokens" + (f" and {work.steps} of lookahead" if work.steps else "")
        raise DraftUnavailable(f"the draft reads at most {inputs.draft_context_tokens} tokens, not {needed}")


def selection_work(policy: SpecKv, read_tokens: int) -> TokenWork | None:
    """The target's work of selecting KV: the scoring rows after the tokens that they select from; None if the draft's
    mask selects."""
    if policy.selection is KvSelection.DRAFT_MASK:
        return None
    return TokenWork(policy.window + policy.lookahead_tokens, read_tokens)


def renewal_work(policy: SpecKv, read_tokens: int) -> RenewalWork | None:
    """The target's work of selecting KV while it generates; None if it does not."""
    if not policy.renews:
        return None
    return RenewalWork(TokenWork(policy.renew_window, read_tokens), policy.renew_every)


def reads_all(route: Route) -> bool:
    """Whether the target reads the whole prompt on this route."""
    return route not in POLICIES or POLICIES[route].reads_whole_prompt


def remaining(tokens: int, cached_tokens: int) -> TokenWork:
    """The tokens that are left to read; the last one always is."""
    past = max(0, min(cached_tokens, tokens - 1))
    return TokenWork(tokens - past, past)


def _selected(
    policy: SpecKv,
    read_tokens: int,
    cached_tokens: int,
    held: int,
    *,
    draft: TokenWork | None = None,
    prefill: TokenWork | None = None,
) -> RouteWork:
    """Reading prompt and lookahead, then selecting KV. `held` KV tokens remain."""
    reading = remaining(read_tokens + policy.lookahead_tokens, cached_tokens)
    selection, renewal = selection_work(policy, read_tokens), renewal_work(policy, read_tokens)
    return RouteWork(reading, read_tokens, held, draft, prefill, selection, renewal)


def _continued(policy: SpecKv, prompt_tokens: int, held: int, state: SystemState) -> RouteWork:
    """A later turn needs no draft. It reads the tokens since the selection, or all that is not cached if the entry is
    gone."""
    if any(_resolves_to(requested, policy) for requested in state.entries):
        renewal = renewal_work(policy, prompt_tokens)
        return RouteWork(remaining(held, policy.capacity), prompt_tokens, held, renewal=renewal)
    return _selected(policy, prompt_tokens, state.cached_tokens, held)


def _resolves_to(requested: Policy, policy: SpecKv) -> bool:
    """Whether a requested policy is this one once its capacity is resolved."""
    kv = requested.kv_stage
    if kv is None or requested.prompt_stage is not None:
        return False
    if kv.adaptive is not None:
        kv = replace(kv, capacity=policy.capacity, adaptive=None)
    return replace(kv, mask=None) == replace(policy.entry_policy, mask=None)
