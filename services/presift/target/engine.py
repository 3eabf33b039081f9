"""The port that the target service drives: a prompt goes in, tokens come out, closing the stream aborts the request.

Two engines implement it: `sglang_engine` (the real one) and `echo_engine` (computable by hand, for tests). What is
wrong about a value alone is refused here; what depends on the model (vocabulary, context) is checked in `admission`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.generation import EngineLoad, FinishReason, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import ModelInfo, Route


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """One prompt as the target shall read it: `token_ids` uint32[tokens]. Raises InvalidRequest if it is empty.

    Prompts of different `cache_salt` share no KV. With a `kv_plan` only the KV that it names is kept.
    """

    token_ids: NDArray[np.uint32]
    sampling: Sampling = field(default_factory=Sampling)
    cache_salt: str = ""
    kv_plan: KvPlan | None = None

    def __post_init__(self) -> None:
        if self.token_ids.size == 0:
            raise InvalidRequest("token_ids", "empty", "at least one token")
        self.sampling.check()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that are new since the last event. A stop token is not among them; the tokens of a stop string are,
    because a string may end inside a token: whoever makes the text cuts it.
    """

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. `completion_tokens` counts all that were generated, a stop token included.

    `kv_tokens` is what the prompt held while decoding. The rest says how a `kv_plan` was carried out: `reused_entry`,
    times in ms, `coverage` 0..1 or None where it is not known, `kv_mask` what was kept, where it was asked for and
    selected now.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reason: FinishReason
    kv_tokens: int
    reused_entry: bool = False
    score_ms: float = 0.0
    publish_ms: float = 0.0
    coverage: float | None = None
    kv_mask: KvMask | None = None


Event = Tokens | Finished


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is: `name` with version, its model, what it can do. `model.context_tokens` bounds prompt plus
    answer. `unsupported` says why it does not serve a route that it might. `kv_pool_tokens` 0 is unknown.
    """

    name: str
    model: ModelInfo
    routes: tuple[Route, ...]
    can_stop_at_strings: bool
    unsupported: dict[Route, str] = field(default_factory=dict)
    kv_page_tokens: int = 1
    kv_pool_tokens: int = 0


class Engine(Protocol):
    """An engine is started once and stopped once; `info` may be read from its start on."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def running_requests(self) -> int:
        """Requests inside the engine, waiting ones included; an aborted one counts until the engine let go of it."""

    def load(self) -> EngineLoad | None:
        """What is known of its load without asking, None where nothing is. Answering must not wait for it."""

    async def start(self) -> None:
        """Load the model. Raises TargetUnavailable."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Any number of Tokens, then one Finished. Closing or cancelling it aborts the request inside the engine.

        Raises TargetUnavailable if the engine is gone or goes away.
        """

    async def died(self) -> str:
        """Returns, with the reason, only if the engine fails after its start."""

    async def stop(self) -> None:
        """Leave no process behind. Running requests fail."""
