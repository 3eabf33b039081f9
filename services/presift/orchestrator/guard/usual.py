"""Usual: whether a policy keeps what everyone gets who asks for nothing. What one caller made tighter judges no route.
Pure.
"""

from __future__ import annotations

import numpy as np

from presift.core.policies import Policy, SpecKv, SpecKvPc, SpecPc
from presift.orchestrator.adapting import is_measured, most_tokens
from presift.orchestrator.request import AutoCapacity
from presift.orchestrator.terms import Terms


def is_tighter(policy: Policy, everyones: Terms, page_tokens: int = 1) -> bool:
    """Whether it keeps fewer tokens, KV in whole pages, or is to cover less, than under the terms of everyone."""
    defaults, limits, auto = everyones.defaults, everyones.budget, everyones.defaults.auto_capacity
    if isinstance(policy, SpecPc):
        return _is_under(policy, most_tokens(auto, limits.capacity, defaults.spec_pc.capacity), auto)
    kv_auto = None if isinstance(policy, SpecKvPc) else auto  # there its bounds are of what is read
    kv_tokens = most_tokens(kv_auto, limits.max_kv_tokens, defaults.spec_kv.capacity + 1) - 1
    whole_pages = kv_tokens // page_tokens * page_tokens
    if isinstance(policy, SpecKv):
        return _is_under(policy, whole_pages, auto)
    read_tokens = most_tokens(auto, limits.max_prompt_tokens, defaults.cascade_capacity)
    return _is_under(policy.prompt, read_tokens, auto) or _is_under(policy.kv, whole_pages, auto)


def _is_under(stage: SpecPc | SpecKv, usual: int, auto: AutoCapacity | None) -> bool:
    if stage.capacity < usual or stage.adaptive is None or is_measured(stage):
        return stage.capacity < usual
    return auto is None or bool(stage.adaptive.coverage < np.float32(auto.coverage))
