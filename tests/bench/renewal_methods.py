"""The methods that `renewal_quality` compares, by name.

full                    the whole KV
snap/512                512 KV pairs, selected by the end of the prompt alone (SnapKV)
draft24/512             by the draft's first 24 tokens too (SpecKV)
target/512              by the target's own first 16 tokens, which come from the full KV
renew12/512             the same, and selected again every 12 tokens by the newest 32
renew12w64f8/512        the same by the newest 64, with 8 first tokens; w and f also apply to `target`
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv

FULL = "full"
CAPACITIES = (256, 512, 1024)
FAMILIES = ("snap", "draft24", "draft64", "target", "renew12", "renew32")
EVERY = (FULL, *(f"{family}/{capacity}" for family in FAMILIES for capacity in CAPACITIES))
FEW = (FULL, "snap/512", "draft24/512", "target/512", *(f"renew12/{size}" for size in CAPACITIES), "renew32/512")
_FORM = re.compile(r"(snap|draft|target|renew)(\d*)(?:w(\d+))?(?:f(\d+))?/(\d+)")


@dataclass(frozen=True, slots=True)
class Method:
    """`policy` None is the whole KV. `lookahead_tokens`: how many of the draft's tokens are used."""

    name: str
    policy: SpecKv | None
    lookahead_tokens: int = 0

    @classmethod
    def of(cls, name: str) -> Method:
        """Raises InvalidRequest for a name that is none."""
        if name == FULL:
            return cls(name, None)
        if not (found := _FORM.fullmatch(name)):
            raise InvalidRequest("method", name, f"{FULL} or like one of {', '.join(EVERY[1::3])}")
        family, number, window, first, capacity = found.groups()
        if family in ("snap", "draft"):
            tokens = int(number or 0)
            return cls(name, SpecKv(int(capacity), lookahead_tokens=tokens), tokens)
        policy = SpecKv(
            int(capacity),
            renew_every=int(number or 0),
            renew_window=int(window or 32),
            first_full_tokens=int(first or 16),
        )
        return cls(name, policy)

    def plan(self, lookahead: list[int]) -> KvPlan | None:
        """`lookahead`: the beginning of the draft's answer."""
        if self.policy is None:
            return None
        return KvPlan(self.policy, lookahead_token_ids=tuple(lookahead[: self.lookahead_tokens]))

    @property
    def first_full_tokens(self) -> int:
        return self.policy.first_full_tokens if self.policy else 0
