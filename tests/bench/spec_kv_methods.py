"""The methods that `spec_kv_quality` compares, as requests to an engine: one prompt, one record of the draft."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from retrieval_drafts import CAPACITIES, LOOKAHEAD_TOKENS, first_capacity, mask_of

from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask, TokenMask
from presift.core.policies import KvSelection, SpecKv
from presift.core.spans import covered, spans_of
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.target.engine import GenerateRequest

# By family: the requests of one family run one after the other and share KV, families run at once.
FAMILIES = ("spec_kv", "spec_kv_pc", "spec_pc", "draft_mask", "no_lookahead", "newest")
_SAMPLING = Sampling(max_new_tokens=16)


def full(tokens: TokenizedPrompt) -> GenerateRequest:
    """The whole prompt; its KV stays for the others."""
    return GenerateRequest(tokens.ids, _SAMPLING)


def family(name: str, tokens: TokenizedPrompt, record: dict[str, Any]) -> dict[str, GenerateRequest]:
    """The requests of one method, by "method capacity"."""
    build = {
        "spec_kv": _spec_kv,
        "spec_kv_pc": _spec_kv_pc,
        "spec_pc": _spec_pc,
        "draft_mask": _draft_mask,
        "no_lookahead": _no_lookahead,
        "newest": _newest,
    }[name]
    return {f"{name} {capacity}": build(tokens, record, capacity) for capacity in CAPACITIES}


def _spec_kv(tokens: TokenizedPrompt, record: dict[str, Any], capacity: int) -> GenerateRequest:
    plan = KvPlan(_policy(capacity), tokens.protected, tuple(record["lookahead"]))
    return GenerateRequest(tokens.ids, _SAMPLING, kv_plan=plan)


def _no_lookahead(tokens: TokenizedPrompt, record: dict[str, Any], capacity: int) -> GenerateRequest:
    return GenerateRequest(tokens.ids, _SAMPLING, kv_plan=KvPlan(_policy(capacity), tokens.protected))


def _spec_kv_pc(tokens: TokenizedPrompt, record: dict[str, Any], capacity: int) -> GenerateRequest:
    kept = mask_of(record, f"spec_pc {first_capacity(tokens.ids.size)}")
    protected = spans_of(covered(tokens.protected, kept.size)[kept])
    plan = KvPlan(_policy(capacity), protected, tuple(record["lookahead"]))
    return GenerateRequest(tokens.ids[kept], _SAMPLING, kv_plan=plan)


def _spec_pc(tokens: TokenizedPrompt, record: dict[str, Any], capacity: int) -> GenerateRequest:
    return GenerateRequest(tokens.ids[mask_of(record, f"spec_pc {capacity}")], _SAMPLING)


def _draft_mask(tokens: TokenizedPrompt, record: dict[str, Any], capacity: int) -> GenerateRequest:
    return _masked(tokens, mask_of(record, f"draft_mask {capacity}"), capacity, protects=True)


def _newest(tokens: TokenizedPrompt, record: dict[str, Any], capacity: int) -> GenerateRequest:
    """The last `capacity` tokens before the final one, and the final one; the system prompt goes like all else."""
    return _masked(tokens, np.arange(tokens.ids.size) >= tokens.ids.size - 1 - capacity, capacity, protects=False)


def _masked(tokens: TokenizedPrompt, kept: NDArray[np.bool_], capacity: int, *, protects: bool) -> GenerateRequest:
    policy = SpecKv(capacity=capacity, selection=KvSelection.DRAFT_MASK)
    plan = KvPlan(policy, tokens.protected if protects else (), kv_mask=KvMask.uniform(TokenMask(kept)))
    return GenerateRequest(tokens.ids, _SAMPLING, kv_plan=plan)


def _policy(capacity: int) -> SpecKv:
    """Window 32, kernel 7, max and max: the defaults."""
    return SpecKv(capacity=capacity, lookahead_tokens=LOOKAHEAD_TOKENS)
