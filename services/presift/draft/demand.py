"""What each policy asks of the draft's one pass over the prompt: rows to score, tokens to generate, a mask to draw.

Knows the policies; knows no messages, no prompt and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from presift.core.policies import Policy, SpecPc


class Mask(StrEnum):
    """What the draft's selection says: nothing, which tokens the target reads, or which KV pairs it keeps."""

    NONE = "none"
    TOKEN = "token"
    KV = "kv"


@dataclass(frozen=True, slots=True)
class Demand:
    """One policy, as the draft reads it.

    `scoring` says which rows are captured and how tokens are selected by them; where `mask` is NONE it only says which
    rows make the importance that a caller may ask to see. `lookahead_tokens` are generated and returned. `counting` is
    the selection that says how many KV pairs of the mask's tokens the target is to choose; None leaves that as it is.
    """

    scoring: SpecPc
    mask: Mask
    lookahead_tokens: int
    counting: SpecPc | None = None

    @property
    def on_top_tokens(self) -> int:
        """How many tokens `scoring` keeps beyond the policy's own capacity.

        SpecKV: one, the prompt's final token, which is fed again (design, SpecKV step 3).
        """
        return 0 if self.mask is Mask.TOKEN else 1


def demand_of(policy: Policy) -> Demand:
    """What `policy` asks of the draft."""
    mask = Mask.NONE
    if policy.mask_policy is not None:
        mask = Mask.KV if policy.prompt_stage is None else Mask.TOKEN
    return Demand(policy.scoring_policy, mask, policy.read_lookahead_tokens, policy.counting_policy)
