"""SpecKV-PC: SpecPC with a larger capacity, then SpecKV on what it kept (arXiv 2506.08373, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies.fields import KvSelection
from presift.core.policies.policy import Policy
from presift.core.policies.spec_kv import SpecKv
from presift.core.policies.spec_pc import SpecPc


@dataclass(frozen=True, slots=True)
class SpecKvPc(Policy):
    """`prompt` first (2,048 in the paper), then `kv` on the compressed prompt plus lookahead.

    Raises InvalidRequest unless the target's own queries choose the KV: the draft's mask is of the whole prompt.
    """

    route: ClassVar[Route] = Route.SPEC_KV_PC
    reads_whole_prompt: ClassVar[bool] = False
    drops_kv: ClassVar[bool] = True

    prompt: SpecPc
    kv: SpecKv

    def __post_init__(self) -> None:
        if self.kv.selection is not KvSelection.TARGET_LOOKAHEAD:
            raise InvalidRequest("spec_kv_pc.kv.selection", self.kv.selection, KvSelection.TARGET_LOOKAHEAD.value)

    @property
    def entry_policy(self) -> Self:
        return replace(self, kv=self.kv.entry_policy)

    @property
    def prompt_stage(self) -> SpecPc:
        return self.prompt

    @property
    def kv_stage(self) -> SpecKv:
        return self.kv

    @property
    def scoring_policy(self) -> SpecPc:
        return self.prompt

    @property
    def lookahead_policy(self) -> SpecKv:
        return self.kv

    @property
    def counting_policy(self) -> SpecPc | None:
        """Counted by the rows that the draft scores for the first stage."""
        return replace(self.kv, mask=self.prompt).counting_policy
