"""The KV pairs that the target keeps under a plan, in positions of the prompt."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InternalError, TargetUnavailable
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.orchestrator.domain.ports import Target, TargetRequest, Usage
from presift.orchestrator.routing.decision import Plan
from presift.rpc.deadline import Deadline
from presift.rpc.large_input import in_thread

# The target reports its selection with the first token.
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
    """Reads from the target which pairs it keeps, in the namespace of the plan's tenant."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def read(self, plan: Plan, deadline: Deadline) -> KeptKv | None:
        """The first selection; None if the plan drops no KV before the answer begins, or the target does not report it.
        Raises the target port's errors."""
        if plan.kv_plan is None or plan.kv_plan.policy.first_full_tokens:
            return None
        kv_plan = replace(plan.kv_plan, policy=plan.kv_plan.policy.entry_policy, report_kept=True)
        usage = await self._generate(plan, kv_plan, plan.tokens.salt, deadline)
        # The draft's mask is applied unchanged; any other selection is reported only by the call that makes it.
        mask = usage.kv_mask or kv_plan.kv_mask
        if mask is None and usage.reused_entry:
            usage = await self._generate_afresh(plan, kv_plan, deadline)
            mask = usage.kv_mask
        if mask is None:
            return None
        return KeptKv(await in_thread(partial(in_prompt, mask, kv_plan, plan)), usage.coverage)

    async def _generate_afresh(self, plan: Plan, kv_plan: KvPlan, deadline: Deadline) -> Usage:
        """In a namespace of its own, which no later call uses; only its compressed entry stays in the cache."""
        salt = f"{plan.tokens.salt}explain{uuid.uuid4().hex}"
        return await self._generate(plan, replace(kv_plan, keep_full_prefix=False), salt, deadline)

    async def _generate(self, plan: Plan, kv_plan: KvPlan, salt: str, deadline: Deadline) -> Usage:
        request = TargetRequest(plan.read_ids, _ONE_TOKEN, salt, kv_plan)
        call = self._target.generate(request, deadline, replica=plan.replica)
        async with aclosing(call.read_ahead()) as events:
            async for event in events:
                if isinstance(event, Usage):
                    return event
        raise InternalError("the target port ended without usage")


def in_prompt(mask: KvMask, kv_plan: KvPlan, plan: Plan) -> KvMask:
    """`mask`, which is over the tokens read, in positions of the prompt.

    Tokens after those that `kv_plan` covers are kept; tokens that were not read are not. Raises TargetUnavailable if
    the mask has another length.
    """
    read_tokens = int(plan.read_ids.size)
    covered = kv_plan.covered_tokens(read_tokens)
    layers, kv_heads, masked = mask.kept.shape
    if masked != covered:
        raise TargetUnavailable(f"the target's answer: a KV mask of {masked} tokens where it read {covered}")
    if covered == plan.kept_mask.size:
        return mask
    read = np.ones((layers, kv_heads, read_tokens), dtype=np.bool_)
    read[:, :, :covered] = mask.kept
    if read_tokens == plan.kept_mask.size:
        return KvMask(read)
    whole = np.zeros((layers, kv_heads, plan.kept_mask.size), dtype=np.bool_)
    whole[:, :, plan.kept_mask] = read  # where the prompt was compressed, `kept_mask` marks the tokens read
    return KvMask(whole)
