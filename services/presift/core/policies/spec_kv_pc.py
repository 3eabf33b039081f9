"""SpecKV-PC: SpecPC with a larger capacity, then SpecKV on what it kept (arXiv 2506.08373, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from presift.core.errors import InvalidRequest
from presift.core.policies.fields import KvSelection
from presift.core.policies.spec_kv import SpecKv
from presift.core.policies.spec_pc import SpecPc


@dataclass(frozen=True, slots=True)
class SpecKvPc:
    """`prompt` first (2,048 in the paper), then `kv` on the compressed prompt plus lookahead.

    Raises InvalidRequest unless the target's own queries choose the KV: the draft's mask is of the whole prompt.
    """

    prompt: SpecPc
    kv: SpecKv

    def __post_init__(self) -> None:
        if self.kv.selection is not KvSelection.TARGET_LOOKAHEAD:
            raise InvalidRequest("spec_kv_pc.kv.selection", self.kv.selection, KvSelection.TARGET_LOOKAHEAD.value)

    @property
    def counting_policy(self) -> SpecPc | None:
        """As SpecKv's, by the rows that the draft scores for the first stage."""
        return replace(self.kv, mask=self.prompt).counting_policy
