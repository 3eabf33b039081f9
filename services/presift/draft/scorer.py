"""The port between the draft service and its model: the task, the result, and cancellation.

It depends on neither torch nor gRPC, so that contract tests can use a scorer whose results are computed by hand.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import DeadlineExceeded, InvalidRequest, RouteUnsupported
from presift.core.plan import ModelInfo
from presift.core.policies import Heads, SpecPc
from presift.rpc.deadline import NO_DEADLINE, Deadline


class HeadReduction(StrEnum):
    """How the rows of all scored heads become one number per token.

    MAX and SUM are over rows and heads, as `Reduction`. HEAD_MAX sums each head's rows, then takes the best head: a
    head that looks at a token from many rows counts more than one that does so by chance.
    """

    MAX = "max"
    SUM = "sum"
    HEAD_MAX = "head_max"


class Cancelled(Exception):
    """The work was cancelled: its client has disconnected, or the service stops."""


class Cancel:
    """Stops running work. Checked between chunks of a prefill and between generated tokens. Thread-safe."""

    def __init__(self, deadline: Deadline = NO_DEADLINE) -> None:
        self._deadline = deadline
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Make every later `check` raise Cancelled."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded if the work should stop."""
        if self._cancelled.is_set():
            raise Cancelled
        if self._deadline.remaining_s == 0.0:
            raise DeadlineExceeded("deadline exceeded while the draft read the prompt")


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTask:
    """One prompt to read. `token_ids`: uint32[n], n >= 1. Raises InvalidRequest.

    `policy` defines which rows of attention are captured; None captures none. The scorer ignores its capacity, pooling
    and neighbors. `lookahead_tokens`: how many tokens to generate.
    `salt`: prompts with different salts share nothing that was kept of earlier prompts.
    """

    token_ids: NDArray[np.uint32]
    policy: SpecPc | None = None
    lookahead_tokens: int = 0
    salt: str = ""

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 1 or self.token_ids.size == 0:
            raise InvalidRequest("token_ids", f"{self.token_ids.size} tokens", ">= 1 token")
        if self.policy is not None and self.policy.window > self.prompt_tokens:
            raise InvalidRequest("spec_pc.window", self.policy.window, f"<= {self.prompt_tokens} (the prompt's tokens)")

    @property
    def prompt_tokens(self) -> int:
        return int(self.token_ids.size)

    @property
    def scored_lookahead_tokens(self) -> int:
        """How many generated tokens are read back and scored: m - 1 (design, SpecPC step 4)."""
        return self.policy.lookahead_tokens - 1 if self.policy else 0

    @property
    def generated_tokens(self) -> int:
        """The maximum number of generated tokens."""
        return max(self.lookahead_tokens, self.scored_lookahead_tokens)


@dataclass(frozen=True, slots=True)
class ScoreTimings:
    """Wall time in milliseconds. `prefill_ms` includes capturing the window's rows."""

    prefill_ms: float = 0.0
    lookahead_ms: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResult:
    """The result of a task; the arrays are None if the task had no policy.

    importance: float32[n], un-pooled, reduced over rows, heads and layers as the policy says.
    coverage_importance: float32[n], the same rows, summed over rows, heads and layers: the total of `coverage`.
    lookahead_token_ids: at most `lookahead_tokens` greedy tokens, EOS included; fewer only after EOS.
    cached_tokens: how many tokens of the prompt were not read, because they were kept of an earlier one.
    """

    importance: NDArray[np.float32] | None
    coverage_importance: NDArray[np.float32] | None
    lookahead_token_ids: tuple[int, ...]
    timings: ScoreTimings
    cached_tokens: int = 0


def check_heads(policy: SpecPc, layers: int, *, has_profile: bool) -> None:
    """Raise RouteUnsupported if the policy needs a head profile and the draft has none, InvalidRequest if its
    start_layer is not one of the draft's `layers`."""
    if policy.heads is Heads.CALIBRATED:
        if not has_profile:
            raise RouteUnsupported("spec_pc.heads", policy.heads, f"{Heads.ALL} (the draft has no head profile)")
    elif policy.start_layer >= layers:
        raise InvalidRequest("spec_pc.start_layer", policy.start_layer, f"< {layers} (the draft's layers)")


class Scorer(Protocol):
    """A draft model. Used by one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """The model. It does not change."""

    def score(self, task: ScoreTask, cancel: Cancel) -> ScoreResult:
        """Read the prompt once. What is kept of earlier prompts saves time, and does not change the result.

        Raises InvalidRequest if the policy needs layers that the model does not have; Cancelled or DeadlineExceeded at
        most one chunk after `cancel` says so.
        """
