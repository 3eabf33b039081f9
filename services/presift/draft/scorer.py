"""The port between the draft service and the model behind it: what is asked, what comes back, how it is stopped.

Knows no torch and no gRPC, so that contract tests can put a hand-computable scorer in the model's place.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import DeadlineExceeded, InvalidRequest
from presift.core.plan import ModelInfo
from presift.core.policies import SpecPc


class Cancelled(Exception):
    """The caller went away. Ends the work; nobody is left to read it."""


class Cancel:
    """Tells running work to stop: asked between chunks of a prefill and between generated tokens. Thread-safe.

    `deadline_s` is on the clock of `time.monotonic`; None means no deadline.
    """

    def __init__(self, deadline_s: float | None = None) -> None:
        self._deadline_s = deadline_s
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Make every later `check` raise Cancelled."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded if the work is no longer wanted."""
        if self._cancelled.is_set():
            raise Cancelled
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            raise DeadlineExceeded("the deadline passed while the draft was reading the prompt")


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTask:
    """One prompt to read. `token_ids`: uint32[n], n >= 1. Raises InvalidRequest.

    `policy` says which rows of attention are captured; None captures none (nothing will be dropped). Its capacity,
    pooling and neighbours are not the scorer's business. `lookahead_tokens` is how many tokens the caller wants
    generated.
    """

    token_ids: NDArray[np.uint32]
    policy: SpecPc | None = None
    lookahead_tokens: int = 0

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
        """How many generated tokens are fed back and scored: m - 1 (design, SpecPC step 4)."""
        return self.policy.lookahead_tokens - 1 if self.policy else 0

    @property
    def generated_tokens(self) -> int:
        """The most tokens that will be generated."""
        return max(self.lookahead_tokens, self.scored_lookahead_tokens)


@dataclass(frozen=True, slots=True)
class ScoreTimings:
    """Wall time in milliseconds. `prefill_ms` includes capturing the window's rows."""

    prefill_ms: float = 0.0
    lookahead_ms: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What the draft found; the arrays are None where the task had no policy.

    importance: float32[n], un-pooled, reduced over rows, heads and layers as the policy says.
    coverage_importance: float32[n], the same rows summed over rows, heads and layers: what `coverage` is a share of.
    lookahead_token_ids: at most `lookahead_tokens` greedy tokens, EOS included; fewer only after EOS.
    """

    importance: NDArray[np.float32] | None
    coverage_importance: NDArray[np.float32] | None
    lookahead_token_ids: tuple[int, ...]
    timings: ScoreTimings


def check_layers(policy: SpecPc, layers: int) -> None:
    """Raise InvalidRequest if the policy starts beyond the draft's `layers`."""
    if policy.start_layer >= layers:
        raise InvalidRequest("spec_pc.start_layer", policy.start_layer, f"< {layers} (the draft's layers)")


class Scorer(Protocol):
    """A draft model. Used by one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """The model; does not change."""

    def score(self, task: ScoreTask, cancel: Cancel) -> Scored:
        """Read the prompt once. A pure function of the task: no state is left behind, whatever is raised.

        Raises InvalidRequest if the policy asks for layers that the model does not have, Cancelled or DeadlineExceeded
        within one chunk of `cancel` saying so.
        """
