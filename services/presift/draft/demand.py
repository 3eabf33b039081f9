"""What a policy needs from the draft's pass over the prompt: rows to score, tokens to generate, a mask to select."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from presift.core.policies import Policy, SpecPc


class Mask(StrEnum):
    """What the draft selects: nothing, the tokens that the target reads, or the KV pairs that it keeps."""

    NONE = "none"
    TOKEN = "token"
    KV = "kv"


@dataclass(frozen=True, slots=True)
class Demand:
    """What one policy needs from the draft.

    `scoring` defines which rows are captured and how tokens are selected by them. If `mask` is NONE, it only defines
    the rows of the importance that a caller may request. `lookahead_tokens` are generated and returned. `counting` is
    the selection that decides how many KV pairs of the mask's tokens the target keeps; None: the policy's capacity.
    """

    scoring: SpecPc
    mask: Mask
    lookahead_tokens: int
    counting: SpecPc | None = None

    @property
    def extra_kept_tokens(self) -> int:
        """How many tokens `scoring` keeps beyond the policy's capacity.

        With SpecKV one: the prompt's final token, which the target reads again (design, SpecKV step 3).
        """
        return 0 if self.mask is Mask.TOKEN else 1


def demand_of(policy: Policy) -> Demand:
    """The Demand of `policy`."""
    mask = Mask.NONE
    if policy.mask_policy is not None:
        mask = Mask.KV if policy.prompt_stage is None else Mask.TOKEN
    return Demand(policy.scoring_policy, mask, policy.read_lookahead_tokens, policy.counting_policy)
