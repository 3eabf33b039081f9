"""Whether a plan covers as much as the caller requires (`min_coverage`). Pure.

Where the target selects KV, the draft's estimate of what as many pairs would cover counts.
"""

from __future__ import annotations

import numpy as np

from presift.core.policies import Policy
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.planning.compressor import CompressionResult
from presift.orchestrator.planning.conversations import StoredSelection

# The coverage of each stage, 0..1; None if the draft did not report it.
Coverages = tuple[float | None, ...]


def covers(found: Coverages, budget: Budget) -> bool:
    """Whether every stage is known to cover what the caller requires."""
    return budget.min_coverage is None or all(each is not None and _reaches(each, budget) for each in found)


def is_unknown(found: Coverages, budget: Budget) -> bool:
    """Whether some stage may cover too little, and none is known to."""
    return None in found and all(each is None or _reaches(each, budget) for each in found)


def compressed_coverages(policy: Policy, compressed: CompressionResult, *, drops_kv: bool) -> Coverages:
    """The stages of a compressed prompt; of the mask alone if no KV of what is read is dropped after all."""
    prompt = compressed.prompt
    return _stages(policy, prompt.coverage, prompt.kv_coverage) if drops_kv else (prompt.coverage,)


def stored_coverages(stored: StoredSelection) -> Coverages:
    """The stages of the selection that a later turn would continue."""
    return _stages(stored.kv_plan.policy, stored.coverage, stored.kv_coverage)


def lowest(found: Coverages) -> float | None:
    """The lowest coverage that is known."""
    return min((each for each in found if each is not None), default=None)


def _stages(policy: Policy, coverage: float | None, kv_coverage: float | None) -> Coverages:
    of_mask = () if policy.mask_policy is None else (coverage,)
    return of_mask if policy.lookahead_policy is None else (*of_mask, kv_coverage)


def _reaches(coverage: float, budget: Budget) -> bool:
    # As float32, as coverages travel: 0.9 in a policy file must equal 0.9 from a caller.
    return budget.min_coverage is None or bool(np.float32(coverage) >= np.float32(budget.min_coverage))
