"""The engine port of the target service: a prompt goes in, tokens come out, closing the stream aborts the request.

`sglang.engine` implements it; tests use `tests/echo_engine.py`, whose answers are computable by hand. Values are
checked here; what depends on the model (vocabulary, context) is checked in `admission`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from presift.core.answer import AnswerDelta, AnswerFormat, Finished
from presift.core.errors import InvalidRequest
from presift.core.generation import EngineLoad, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo, Route


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """One prompt for the target: `token_ids` uint32[tokens].

    Requests with different `cache_salt` share no KV. With a `kv_plan` only the KV that it selects is kept. With a
    `format` the deltas have their text, separated.
    Raises InvalidRequest for an empty prompt or sampling values out of range.
    """

    token_ids: NDArray[np.uint32]
    sampling: Sampling = field(default_factory=Sampling)
    cache_salt: str = ""
    kv_plan: KvPlan | None = None
    format: AnswerFormat | None = None

    def __post_init__(self) -> None:
        if self.token_ids.size == 0:
            raise InvalidRequest("token_ids", "empty", "at least one token")
        self.sampling.check()


Event = AnswerDelta | Finished


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine's `name` with version, "(untested)" behind it if so, its model and features. `model.context_tokens`
    limits prompt plus answer.

    `unsupported`: why a route is not served. `kv_pool_tokens`: size of the KV pool, 0 if unknown. The parsers separate
    the text of answers; empty if there is none. `grammars`: whether an answer can be restricted by a grammar.
    `unsupported_seeds`: why answers cannot be sampled by a seed; empty if they can.
    `max_running`: how many requests run at once.
    """

    name: str
    model: ModelInfo
    routes: tuple[Route, ...]
    can_stop_at_strings: bool
    unsupported: dict[Route, str] = field(default_factory=dict)
    kv_page_tokens: int = 1
    kv_pool_tokens: int = 0
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    grammars: bool = False
    unsupported_seeds: str = ""
    max_running: int = 16


class Engine(Protocol):
    """An engine. Start it once and stop it once; `info` is available after the start."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def running_requests(self) -> int:
        """Running and waiting requests. An aborted request counts until the engine has released it."""

    def load(self) -> EngineLoad | None:
        """The last known load; None if unknown. Must not block."""

    async def start(self) -> None:
        """Load the model. Raises TargetUnavailable."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yields any number of AnswerDeltas, then one Finished. Closing or cancelling the iterator aborts the request.

        Raises TargetUnavailable if the engine has failed or fails meanwhile.
        """

    async def died(self) -> str:
        """Wait until the engine fails after its start; returns the reason."""

    async def stop(self) -> None:
        """End all processes of the engine. Running requests fail."""
