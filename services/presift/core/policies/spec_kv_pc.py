"""SpecKV-PC: SpecPC with a larger capacity, then SpecKV on what it kept (arXiv 2506.08373, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from presift.core.policies.spec_kv import SpecKv
from presift.core.policies.spec_pc import SpecPc


@dataclass(frozen=True, slots=True)
class SpecKvPc:
    """`prompt` first (2,048 in the paper), then `kv` on the compressed prompt plus lookahead."""

    prompt: SpecPc
    kv: SpecKv
