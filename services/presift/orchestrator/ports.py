"""What the pipeline needs of the other services, as protocols: gRPC in production, fakes in tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import DraftUnavailable
from presift.core.plan import CompressedPrompt, ModelInfo, Route
from presift.core.policies import Policy
from presift.core.spans import Span
from presift.orchestrator.request import Sampling


class MaskRejected(DraftUnavailable):
    """What the draft answered cannot be used: no mask, or one that does not keep what it must."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What the draft said. `importance`: float32[prompt_tokens], only if asked for."""

    prompt: CompressedPrompt
    importance: NDArray[np.float32] | None


class Draft(Protocol):
    """A draft service. Raises DraftUnavailable (MaskRejected), Overloaded, DeadlineExceeded or InvalidRequest."""

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


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Usage:
    """The end of a target's stream: tokens, and milliseconds from the request's arrival at the target."""

    prompt_tokens: int
    kv_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    ttft_ms: float


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """The target's model and the routes that its running engine supports."""

    model: ModelInfo
    supported: frozenset[Route]


class Target(Protocol):
    """A target service. Raises TargetUnavailable, Overloaded, DeadlineExceeded or InvalidRequest."""

    async def info(self) -> TargetInfo: ...

    def generate(
        self, token_ids: NDArray[np.uint32], sampling: Sampling, cache_salt: str, timeout_s: float | None
    ) -> AsyncGenerator[tuple[int, ...] | Usage, None]:
        """New token ids as they come, then exactly one Usage. Closing the iterator aborts the request."""
        ...
