"""SpecKV: KV-cache dropping with the draft's lookahead tokens (arXiv 2506.08373, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies.adaptive import Adaptive
from presift.core.policies.fields import KvSelection, Pool, Reduction, at_least, one_of
from presift.core.policies.policy import Policy
from presift.core.policies.spec_pc import SpecPc

# The counts, and the least value of each.
_LEAST = {
    "capacity": 1,
    "window": 1,
    "kernel": 1,
    "lookahead_tokens": 0,
    "renew_every": 0,
    "renew_window": 1,
    "first_full_tokens": 0,
}
# What shortens the interval of renewals leaves so many tokens between two: each costs about as much as a step on the
# full KV.
LEAST_RENEWAL_TOKENS = 4
_RENEW_WINDOW = 32


@dataclass(frozen=True, slots=True)
class SpecKv(Policy):
    """Hyper-parameters of SpecKV; all counts in tokens. Raises InvalidRequest.

    `capacity` <= `window` and even kernels are refused: the authors' code misbehaves there. With DRAFT_MASK the draft
    selects as in `mask` (None: SpecPc's defaults), whose capacity, window and adaptive are ignored. With `adaptive`
    fewer than `capacity` may be kept: as many as the draft's mask would need, with either selection.

    The first `first_full_tokens` of an answer are generated on the full KV. From then on, the target selects anew by
    the newest `renew_window` tokens: after `renew_every` tokens (0: never), or sooner after a token that occurs at most
    8 times in the prompt and not among the last `renew_window` of the answer. With `first_full_tokens`,
    TARGET_LOOKAHEAD and no `lookahead_tokens`, the answer's own beginning is the lookahead, and no draft is needed.
    """

    route: ClassVar[Route] = Route.SPEC_KV
    reads_whole_prompt: ClassVar[bool] = True
    drops_kv: ClassVar[bool] = True

    capacity: int
    window: int = 32
    pool: Pool = Pool.MAX
    kernel: int = 7
    reduction: Reduction = Reduction.MAX
    lookahead_tokens: int = 24
    selection: KvSelection = KvSelection.TARGET_LOOKAHEAD
    mask: SpecPc | None = None
    adaptive: Adaptive | None = None
    renew_every: int = 0
    renew_window: int = _RENEW_WINDOW
    first_full_tokens: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            at_least(f"spec_kv.{name}", getattr(self, name), least)
        for name, kind in (("pool", Pool), ("reduction", Reduction), ("selection", KvSelection)):
            one_of(f"spec_kv.{name}", getattr(self, name), kind)
        if self.kernel % 2 == 0:
            raise InvalidRequest("spec_kv.kernel", self.kernel, "odd")
        if self.capacity <= self.window:
            raise InvalidRequest("spec_kv.capacity", self.capacity, f"> window ({self.window})")
        if self.renews and self.capacity <= self.renew_window:
            raise InvalidRequest("spec_kv.capacity", self.capacity, f"> renew_window ({self.renew_window})")
        if self.adaptive is not None:
            self.adaptive.check_within("spec_kv.adaptive", self.window + 1, self.capacity)

    @property
    def renews(self) -> bool:
        """Whether KV is selected while the answer is generated."""
        return self.renew_every > 0 or self.first_full_tokens > 0

    @property
    def needs_draft(self) -> bool:
        """Not if the target selects by its own tokens alone: those of the prompt's window, or of the answer."""
        by_target = self.selection is KvSelection.TARGET_LOOKAHEAD
        return not by_target or self.lookahead_tokens > 0 or self.adaptive is not None

    @property
    def entry_policy(self) -> Self:
        return replace(self, renew_every=0, renew_window=_RENEW_WINDOW, first_full_tokens=0)

    @property
    def prompt_stage(self) -> None:
        return None

    @property
    def kv_stage(self) -> SpecKv:
        return self

    @property
    def scoring_policy(self) -> SpecPc:
        return self.draft_policy

    @property
    def mask_policy(self) -> SpecPc | None:
        return self.draft_policy if self.selection is KvSelection.DRAFT_MASK else None

    @property
    def lookahead_policy(self) -> SpecKv | None:
        return self if self.selection is KvSelection.TARGET_LOOKAHEAD else None

    def with_scoring(self, template: SpecPc) -> Self:
        return replace(self, mask=template)

    @property
    def counting_policy(self) -> SpecPc | None:
        counts = self.adaptive is not None and self.selection is KvSelection.TARGET_LOOKAHEAD
        return self.draft_policy if counts else None

    @property
    def draft_policy(self) -> SpecPc:
        """The policy by which the draft selects, or counts for TARGET_LOOKAHEAD. All sizes include the final token."""
        template = self.mask or SpecPc(capacity=self.capacity, window=self.window)
        adaptive = self.adaptive
        if adaptive is not None:
            adaptive = replace(adaptive, min_capacity=adaptive.min_capacity + 1)
        return replace(template, capacity=self.capacity + 1, window=self.window + 1, adaptive=adaptive)
