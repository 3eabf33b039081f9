"""Kept KV: which KV pairs the target keeps under a plan, told in the positions of the prompt."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InternalError, TargetUnavailable
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.orchestrator.domain.ports import Target, Usage
from presift.orchestrator.domain.request import Sampling
from presift.orchestrator.routing.decision import Plan

# What the target selects is told with the first token.
_ONE_TOKEN = Sampling(max_new_tokens=1)


@dataclass(frozen=True, slots=True)
class KeptKv:
    """`mask` in positions of the prompt; `coverage` as in Usage."""

    mask: KvMask
    coverage: float | None

    @property
    def shares(self) -> NDArray[np.float64]:
        """float64[prompt_tokens]: the share of each token's KV pairs, over layers and heads, that is kept."""
        return np.asarray(self.mask.kept.mean(axis=(0, 1)))


class KeptKvReader:
    """Asks the target what it keeps, in the namespace of whose plan it is."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def read(self, plan: Plan, timeout_s: float | None) -> KeptKv | None:
        """None where the plan drops no KV, or the target does not say. Raises what the target port raises."""
        if plan.kv_plan is None:
            return None
        asked = replace(plan.kv_plan, report_kept=True)
        usage = await self._ask(plan, asked, plan.salt, timeout_s)
        # The draft's mask is applied as it is; any other selection is told by the call alone that makes it.
        mask = usage.kv_mask or asked.kv_mask
        if mask is None and usage.reused_entry:
            usage = await self._ask_anew(plan, asked, timeout_s)
            mask = usage.kv_mask
        return None if mask is None else KeptKv(in_prompt(mask, asked, plan), usage.coverage)

    async def _ask_anew(self, plan: Plan, asked: KvPlan, timeout_s: float | None) -> Usage:
        """In a namespace of its own, of which nothing but the compressed entry is left: no later call finds it."""
        salt = f"{plan.salt}explain{uuid.uuid4().hex}"
        return await self._ask(plan, replace(asked, keep_full_prefix=False), salt, timeout_s)

    async def _ask(self, plan: Plan, asked: KvPlan, salt: str, timeout_s: float | None) -> Usage:
        stream = self._target.generate(plan.read_ids, _ONE_TOKEN, salt, timeout_s, asked, at=plan.at)
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Usage):
                    return event
        raise InternalError("the target port ended without usage")


def in_prompt(mask: KvMask, asked: KvPlan, plan: Plan) -> KvMask:
    """`mask`, made of what the target read, in positions of the prompt: what lies behind the tokens that `asked` covers
    is kept, what was not read is not. Raises TargetUnavailable if it is not of that many tokens.
    """
    read_tokens = int(plan.read_ids.size)
    covered = asked.covered_tokens(read_tokens)
    layers, kv_heads, masked = mask.kept.shape
    if masked != covered:
        raise TargetUnavailable(f"the target's answer: a KV mask of {masked} tokens where it read {covered}")
    read = np.ones((layers, kv_heads, read_tokens), dtype=np.bool_)
    read[:, :, :covered] = mask.kept
    if read_tokens == plan.kept.size:
        return KvMask(read)
    whole = np.zeros((layers, kv_heads, plan.kept.size), dtype=np.bool_)
    whole[:, :, plan.kept] = read  # where less is read than the prompt, `kept` says what
    return KvMask(whole)
