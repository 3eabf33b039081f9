"""Plans: what a choice and the draft's answer come to: the tokens to read, the KV to keep, the decision. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo
from presift.orchestrator.planning.compressor import CompressionResult
from presift.orchestrator.planning.conversations import StoredSelection
from presift.orchestrator.planning.kv_plan import kv_plan_of
from presift.orchestrator.prompt.tokenizer import Tokenized
from presift.orchestrator.routing.adaptive_capacity import outcome
from presift.orchestrator.routing.choice import RouteChoice
from presift.orchestrator.routing.decision import Decision, Plan


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """What a plan is made of: the prompt, the target that shall read it, and the milliseconds that tokenising took."""

    tokens: Tokenized
    target: ModelInfo
    tokenize_ms: float

    @property
    def prompt_tokens(self) -> int:
        return int(self.tokens.ids.size)


def plan_of(
    choice: RouteChoice, compressed: CompressionResult | None, prefill_ms: float, origin: TokenizedPrompt
) -> Plan:
    """The plan of a new prompt; `compressed` None reads it in full."""
    everything = np.ones(origin.prompt_tokens, dtype=np.bool_)
    if compressed is None:
        return _plan(choice, origin, everything, None, prefill_ms=prefill_ms)
    if choice.policy is not None and (said := outcome(choice.policy, compressed.prompt)):
        choice = replace(choice, detail=f"{choice.detail}; {said}")
    kv_plan = kv_plan_of(choice, compressed.prompt, origin.tokens)
    # With KV of the whole prompt dropped by a mask, everything is read all the same.
    reads_all = choice.policy is not None and choice.policy.prompt_stage is None
    read = everything if reads_all else compressed.prompt.mask.kept
    found = {
        "draft": compressed.prompt.draft,
        "coverage": compressed.prompt.coverage,
        "kv_coverage": compressed.prompt.kv_coverage,
        "cache": compressed.cache,
        "cache_ms": compressed.cache_ms,
        "draft_ms": compressed.draft_ms,
        "draft_queue_ms": compressed.draft_queue_ms,
        "prefill_ms": prefill_ms,
    }
    return replace(_plan(choice, origin, read, kv_plan, **found), kept=compressed.prompt.mask.kept)


def continued_plan(choice: RouteChoice, turn: StoredSelection, origin: TokenizedPrompt) -> Plan:
    """The plan of a later turn: the selection of the earlier one, and all that came since."""
    kv_plan = replace(turn.kv_plan, keep_full_prefix=bool(choice.keep_full_prefix))
    kept = np.ones(origin.prompt_tokens, dtype=np.bool_)
    if kv_plan.kv_mask is not None:
        kept[: kv_plan.prompt_tokens] = kv_plan.kv_mask.kept[0, 0]
    found = {"draft": turn.draft, "coverage": turn.coverage, "kv_coverage": turn.kv_coverage, "continued": True}
    return replace(_plan(choice, origin, np.ones_like(kept), kv_plan, **found), kept=kept)


def turn_of(plan: Plan) -> StoredSelection | None:
    """What a later turn needs to go on with this plan; None where its prompt was compressed or read in full."""
    decision, kv_plan = plan.decision, plan.kv_plan
    if kv_plan is None or decision.draft is None or decision.policy is None or decision.policy.prompt_stage is not None:
        return None
    covers = kv_plan.prompt_tokens or decision.prompt_tokens
    return StoredSelection(
        replace(kv_plan, prompt_tokens=covers), decision.draft, decision.coverage, decision.kv_coverage
    )


def _plan(
    choice: RouteChoice, origin: TokenizedPrompt, read: NDArray[np.bool_], kv_plan: KvPlan | None, **found: Any
) -> Plan:
    tokens, read_tokens = origin.tokens, int(np.count_nonzero(read))
    decision = Decision(
        route=choice.route,
        reason=choice.reason,
        detail=choice.detail,
        prompt_tokens=origin.prompt_tokens,
        kept_tokens=read_tokens,
        kv_tokens=read_tokens if kv_plan is None else kv_plan.held_tokens(read_tokens),
        protected_tokens=sum(len(span) for span in tokens.protected),
        target=origin.target,
        tokenize_ms=origin.tokenize_ms,
        policy=choice.policy,
        keep_full_prefix=choice.keep_full_prefix,
        forecast=choice.forecast,
        **found,
    )
    if decision.cross_vocabulary:
        decision = replace(decision, detail=f"{decision.detail}; drafted in another vocabulary, carried over by text")
    read_ids = tokens.ids if read.all() else tokens.ids[read]
    return Plan(decision, read_ids, read, tokens.protected, kv_plan, prompt_ids=tokens.ids, salt=tokens.salt)
