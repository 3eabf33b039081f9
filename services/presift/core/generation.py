"""How an answer is generated and how it ends: the values that the orchestrator and the target share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_STOP_STRINGS


class FinishReason(StrEnum):
    """Why an answer ended: STOP for EOS, a stop token or a stop string."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class ContextSizes:
    """What a prompt and its answer need, and the context that they exceed; in tokens."""

    context_tokens: int
    prompt_tokens: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None means the target's default: `temperature` 0 (greedy), `top_p` 1, all of `top_k`,
    a random `seed`. The target calls `check`.
    """

    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether the same prompt always gets the same answer."""
        return not self.temperature or self.top_k == 1

    def check(self) -> None:
        """Raises InvalidRequest if a value is out of its range."""
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, ">= 1")
        _require(0.0 <= (self.temperature or 0.0) <= 2.0, "temperature", self.temperature, "0..2")
        _require(self.top_p is None or 0.0 < self.top_p <= 1.0, "top_p", self.top_p, "> 0 and <= 1")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, ">= 1")
        _require(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"{len(self.stop)} strings", f"at most {MAX_STOP_STRINGS}")
        _require(all(self.stop), "stop", "an empty string", "non-empty strings")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load of a target's engine: running and waiting requests, KV slots free or held by running requests.

    Slots that only the radix cache holds are free.
    """

    running: int
    waiting: int
    free_kv_tokens: int
    held_kv_tokens: int = 0


def _require(holds: bool, name: str, value: Any, limit: str) -> None:
    if not holds:
        raise InvalidRequest(f"sampling.{name}", value, limit)
