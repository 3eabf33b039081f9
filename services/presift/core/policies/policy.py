"""The interface of every policy, so that no other code needs to know which policy it has.

A policy has at most two stages. `prompt_stage` drops prompt tokens before the target reads them; `kv_stage` drops KV
pairs after the target has read its prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

from presift.core.plan import Route

if TYPE_CHECKING:  # these import this module
    from presift.core.policies.spec_kv import SpecKv
    from presift.core.policies.spec_pc import SpecPc


class Policy(ABC):
    """A frozen dataclass of hyper-parameters. Its route and its message in plan.proto have its name."""

    __slots__ = ()

    route: ClassVar[Route]
    reads_whole_prompt: ClassVar[bool]
    drops_kv: ClassVar[bool]

    @property
    @abstractmethod
    def prompt_stage(self) -> SpecPc | None:
        """How prompt tokens are dropped before the target reads them; None: the target reads all of them."""

    @property
    @abstractmethod
    def kv_stage(self) -> SpecKv | None:
        """How KV pairs are dropped after the target has read its prompt; None: it keeps all of them."""

    @property
    @abstractmethod
    def scoring_policy(self) -> SpecPc:
        """Which rows of the draft's attention make a token's importance."""

    @property
    def needs_draft(self) -> bool:
        """Whether a draft must read the prompt before the target can generate."""
        return True

    @property
    def entry_policy(self) -> Self:
        """The policy without what the target does while it generates: all that a compressed prompt and the first
        compressed entry depend on."""
        return self

    @property
    def mask_policy(self) -> SpecPc | None:
        """How the draft selects tokens for its mask; None: the mask keeps every token."""
        return self.prompt_stage

    @property
    def counting_policy(self) -> SpecPc | None:
        """How the draft counts the KV pairs that the target will choose; None: it does not count them."""
        return None

    @property
    def lookahead_policy(self) -> SpecKv | None:
        """The stage whose lookahead the target reads; None: it reads none."""
        return None

    @property
    def read_lookahead_tokens(self) -> int:
        """The number of lookahead tokens that the target reads after its prompt."""
        return 0 if self.lookahead_policy is None else self.lookahead_policy.lookahead_tokens

    @property
    def draft_steps(self) -> int:
        """Tokens that the draft feeds back after the prompt, for scoring and for the target's lookahead."""
        is_scored = self.mask_policy is not None or self.counting_policy is not None
        return max(self.scoring_policy.lookahead_tokens - 1 if is_scored else 0, self.read_lookahead_tokens)

    def with_scoring(self, template: SpecPc) -> Self:
        """The policy with `template` as its scoring policy, if it does not define one itself."""
        return self
