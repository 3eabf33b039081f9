"""Whether a policy keeps less than the deployment's defaults. A caller's own tight budget must not judge a route."""

from __future__ import annotations

import numpy as np

from presift.core.policies import Policy, SpecKv, SpecPc
from presift.orchestrator.config.overrides import EffectiveDefaults
from presift.orchestrator.domain.request import AutoCapacity
from presift.orchestrator.routing.adaptive_capacity import is_measured, most_tokens


def is_tighter(policy: Policy, everyone: EffectiveDefaults, page_tokens: int = 1) -> bool:
    """Whether `policy` keeps fewer tokens (KV in whole pages), or less coverage, than without a budget."""
    defaults, limits, auto = everyone.defaults, everyone.budget, everyone.defaults.auto_capacity
    prompt, kv = policy.prompt_stage, policy.kv_stage
    if prompt is not None:
        default = defaults.spec_pc.capacity if kv is None else defaults.cascade_capacity
        limit = limits.capacity if kv is None else limits.max_prompt_tokens
        if _is_under(prompt, most_tokens(auto, limit, default), auto):
            return True
    if kv is None:
        return False
    kv_auto = auto if prompt is None else None  # with a prompt stage, its bounds are those of the tokens read
    kv_tokens = most_tokens(kv_auto, limits.max_kv_tokens, defaults.spec_kv.capacity + 1) - 1
    return _is_under(kv, kv_tokens // page_tokens * page_tokens, auto)


def _is_under(stage: SpecPc | SpecKv, usual: int, auto: AutoCapacity | None) -> bool:
    if stage.capacity < usual or stage.adaptive is None or is_measured(stage):
        return stage.capacity < usual
    return auto is None or bool(stage.adaptive.coverage < np.float32(auto.coverage))
