"""What the pipeline needs of the other services, as protocols: gRPC in production, fakes in tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import DraftUnavailable
from presift.core.generation import EngineLoad as TargetLoad
from presift.core.generation import FinishReason, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import CompressedPrompt, ModelInfo, Route
from presift.core.policies import Policy
from presift.core.spans import Span
from presift.rpc.pool.replica import ReplicaStatus

# Re-exported; the other names are defined here.
__all__ = ["FinishReason", "TargetLoad"]


class MaskRejected(DraftUnavailable):
    """What the draft answered cannot be used: no mask, or one that does not keep what it must."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What the draft said. `importance`: float32[prompt_tokens], only if asked for; with it `mass`, what coverage is a
    share of: float32[prompt_tokens], None from a draft that does not tell. `queue_ms`: how long the draft let it wait.
    """

    prompt: CompressedPrompt
    importance: NDArray[np.float32] | None
    mass: NDArray[np.float32] | None = None
    queue_ms: float = 0.0


class Draft(Protocol):
    """A draft service. Raises DraftUnavailable (MaskRejected), Overloaded, DeadlineExceeded or InvalidRequest."""

    @property
    def width(self) -> int:
        """How many prompts can be scored at once: the replicas that can be asked."""
        ...

    def standings(self) -> list[ReplicaStatus]: ...

    async def info(self) -> ModelInfo: ...

    async def score(
        self,
        token_ids: NDArray[np.uint32],
        policy: Policy,
        protected: tuple[Span, ...],
        *,
        include_importance: bool,
        timeout_s: float,
    ) -> Score: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """The end of a target's stream: tokens, and milliseconds from the request's arrival at the target.

    `replica` names the process that answered. The five before it are of routes that drop KV: whether the compressed
    entry was found, the time spent on choosing and on copying, the share of the scoring queries' attention on what
    was kept (None where nothing was scored), and what was kept, where that was asked for and chosen in this call.
    """

    prompt_tokens: int
    kv_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    ttft_ms: float
    reused_entry: bool = False
    score_ms: float = 0.0
    publish_ms: float = 0.0
    coverage: float | None = None
    kv_mask: KvMask | None = None
    replica: str = ""
    load: TargetLoad | None = None


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """The target's model, the routes that its running engine supports, and why it does not support others; the process
    that said so."""

    model: ModelInfo
    supported: frozenset[Route]
    unsupported: Mapping[Route, str] = field(default_factory=dict)
    kv_page_tokens: int = 1
    kv_pool_tokens: int = 0
    replica: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaRef:
    """Where a request goes: a replica by its name, and the key by which another is chosen where that one cannot."""

    replica: str = ""
    key: str = ""


ANY_REPLICA = ReplicaRef()


class Target(Protocol):
    """A target service. Raises TargetUnavailable, Overloaded, DeadlineExceeded, InvalidRequest or RouteUnsupported.

    What fails once tokens have come carries their number in `details`: `delivered_tokens`.
    """

    def standings(self) -> list[ReplicaStatus]: ...

    @property
    def has_choice(self) -> bool:
        """Whether there may be several replicas."""
        ...

    def seats(self, key: str) -> Sequence[ReplicaRef]:
        """At which replicas a request of this key may be answered, its own first; empty where none can be asked."""
        ...

    def holding(self, seat: ReplicaRef) -> AbstractContextManager[None]:
        """The seat counts as taken until the block ends, by a request that is not there yet."""
        ...

    async def info(self) -> TargetInfo: ...

    def generate(
        self,
        token_ids: NDArray[np.uint32],
        sampling: Sampling,
        cache_salt: str,
        timeout_s: float | None,
        kv_plan: KvPlan | None = None,
        *,
        at: ReplicaRef = ANY_REPLICA,
    ) -> AsyncGenerator[tuple[int, ...] | Usage, None]:
        """New token ids as they come, then exactly one Usage. Closing the iterator aborts the request."""
        ...

    async def prefill(
        self, token_ids: NDArray[np.uint32], cache_salt: str, timeout_s: float | None, at: ReplicaRef = ANY_REPLICA
    ) -> None:
        """Read a prompt into the radix cache; returns when it is there. Cancelling aborts it."""
        ...
