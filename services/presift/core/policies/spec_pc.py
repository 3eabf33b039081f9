"""SpecPC: prompt compression by the draft's attention (arXiv 2506.08373, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies.adaptive import Adaptive
from presift.core.policies.fields import Heads, Pool, Reduction, at_least, one_of
from presift.core.policies.policy import Policy


@dataclass(frozen=True, slots=True)
class SpecPc(Policy):
    """Hyper-parameters of SpecPC; all counts in tokens.

    The defaults are not the authors' (window 64, kernel 64, neighbors 64, start_layer 8): those are too coarse below a
    capacity of about 512; ops/decisions/0004 has the orchestrator's defaults. With `adaptive` fewer than `capacity` may
    be kept. With CALIBRATED heads, `reduction` and `start_layer` are ignored. Raises InvalidRequest.
    """

    route: ClassVar[Route] = Route.SPEC_PC
    reads_whole_prompt: ClassVar[bool] = False
    drops_kv: ClassVar[bool] = False

    capacity: int
    window: int = 32
    pool: Pool = Pool.MAX
    kernel: int = 16
    neighbors: int = 16
    reduction: Reduction = Reduction.MAX
    start_layer: int = 8
    weighted_query: bool = True
    lookahead_tokens: int = 1
    adaptive: Adaptive | None = None
    heads: Heads = Heads.ALL

    def __post_init__(self) -> None:
        for name, least in (("capacity", 1), ("window", 1), ("kernel", 1), ("neighbors", 0), ("start_layer", 0)):
            at_least(f"spec_pc.{name}", getattr(self, name), least)
        at_least("spec_pc.lookahead_tokens", self.lookahead_tokens, 1)
        one_of("spec_pc.pool", self.pool, Pool)
        one_of("spec_pc.reduction", self.reduction, Reduction)
        one_of("spec_pc.heads", self.heads, Heads)
        if self.capacity < self.window:
            raise InvalidRequest("spec_pc.capacity", self.capacity, f">= window ({self.window})")
        if self.adaptive is not None:
            self.adaptive.check_within("spec_pc.adaptive", self.window, self.capacity)

    @property
    def prompt_stage(self) -> SpecPc:
        return self

    @property
    def kv_stage(self) -> None:
        return None

    @property
    def scoring_policy(self) -> SpecPc:
        return self
