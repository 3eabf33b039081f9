"""Capacities that adapt to a coverage, within bounds; and their outcome in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from presift.core.plan import CompressedPrompt
from presift.core.policies import Adaptive, KvSelection, Policy, SpecKv, SpecPc
from presift.orchestrator.domain.request import AutoCapacity

# The default lower bound is a multiple of this, so that few different compressed prompts are cached.
ROUND_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a capacity in tokens: at most `capacity`, at least `window` and `must_keep`.

    It grows by whole pages of `page_tokens`; `capacity` is a whole number of them.
    """

    capacity: int
    window: int
    must_keep: int
    page_tokens: int = 1


def most_tokens(auto: AutoCapacity | None, limit: int | None, default: int) -> int:
    """The upper bound of a capacity: the tightest of the caller's limits, else the default."""
    wanted = None if auto is None else auto.max_tokens
    return min((each for each in (limit, wanted) if each is not None), default=default)


def adaptive_of(auto: AutoCapacity | None, bounds: Bounds, on_top_tokens: int = 0) -> Adaptive | None:
    """How a capacity adapts, None if it does not. The caller counts `on_top_tokens` that the policy does not."""
    if auto is None:
        return None
    if auto.min_tokens is None:
        least = _up(max(bounds.must_keep, bounds.window), ROUND_TOKENS)
    else:
        least = max(auto.min_tokens - on_top_tokens, bounds.window)
    return Adaptive(auto.coverage, min(_up(least, bounds.page_tokens), bounds.capacity), bounds.page_tokens)


def measured_at(capacity: int, page_tokens: int) -> Adaptive:
    """A fixed capacity whose coverage the draft reports. It is the same for every requested coverage, so that one
    compressed prompt serves them all."""
    return Adaptive(1.0, capacity, page_tokens)


def is_measured(policy: SpecPc | SpecKv) -> bool:
    """Whether the capacity is fixed and only its coverage is requested."""
    return policy.adaptive == measured_at(policy.capacity, 1 if policy.adaptive is None else policy.adaptive.step)


def is_adaptive(policy: Policy | None) -> bool:
    """Whether a capacity of the policy may turn out smaller."""
    stages = () if policy is None else (policy.prompt_stage, policy.kv_stage)
    return any(stage is not None and stage.adaptive is not None and not is_measured(stage) for stage in stages)


def up_to(policy: Policy | None) -> str:
    """Prefix of a capacity that may turn out smaller."""
    return "up to " if is_adaptive(policy) else ""


def capacity_text(policy: Policy, prompt: CompressedPrompt) -> str:
    """The outcome of an adapted capacity in words, preferably of one that reaches too little; empty if none adapts."""
    outcomes = [each for each in (_prompt_outcome(policy, prompt), _kv_outcome(policy, prompt)) if each is not None]
    return min(outcomes, key=lambda each: each.is_reached).text if outcomes else ""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a capacity adapted to, and whether it reaches its coverage."""

    is_reached: bool
    text: str


def _prompt_outcome(policy: Policy, prompt: CompressedPrompt) -> _Outcome | None:
    stage = policy.prompt_stage
    if stage is None or stage.adaptive is None:
        return None
    return _measured(stage.adaptive, prompt.mask.kept_tokens, stage.capacity, prompt.coverage, "tokens")


def _kv_outcome(policy: Policy, prompt: CompressedPrompt) -> _Outcome | None:
    stage = policy.kv_stage
    if stage is None or stage.adaptive is None:
        return None
    if stage.selection is KvSelection.DRAFT_MASK:
        kept = prompt.mask.kept_tokens - 1
        return _measured(stage.adaptive, kept, stage.capacity, prompt.coverage, "KV tokens")
    return _estimated(stage.adaptive, stage, prompt)


def _measured(adaptive: Adaptive, kept: int, most: int, coverage: float | None, what: str) -> _Outcome:
    if coverage is None or np.float32(coverage) >= np.float32(adaptive.coverage):
        return _Outcome(True, f"{kept} {what} reach coverage {adaptive.coverage:g}")
    return _Outcome(False, f"{most} {what} cover {coverage:.3f} of the requested {adaptive.coverage:g}")


def _estimated(adaptive: Adaptive, policy: SpecKv, prompt: CompressedPrompt) -> _Outcome | None:
    """The outcome by the draft's estimate; None if nothing is dropped, or nothing was estimated."""
    asked, most, found = f"{adaptive.coverage:g}", policy.capacity, prompt.kv_capacity
    estimated = "by the draft's estimate"
    covers = prompt.kv_coverage
    if prompt.mask.kept_tokens - 1 <= most:
        return None
    if is_measured(policy):
        return None if covers is None else _Outcome(True, f"{most} KV tokens cover {covers:.3f} {estimated}")
    if covers is not None and np.float32(covers) < np.float32(adaptive.coverage):
        return _Outcome(False, f"{most} KV tokens cover {covers:.3f} of the requested {asked} {estimated}")
    if found is None:
        return _Outcome(False, f"the draft did not report how many KV tokens reach coverage {asked}")
    if found == most and covers is None:
        return _Outcome(False, f"fewer than {most} KV tokens do not reach coverage {asked} {estimated}")
    return _Outcome(True, f"{found} KV tokens reach coverage {asked} {estimated}")


def _up(tokens: int, multiple: int) -> int:
    return -(-tokens // multiple) * multiple
