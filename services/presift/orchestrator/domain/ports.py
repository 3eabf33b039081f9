"""What the orchestrator needs from the other services, as protocols: gRPC in production, fakes in tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from presift.core.answer import AnswerDelta, AnswerFormat, Finished
from presift.core.errors import DraftUnavailable
from presift.core.generation import EngineLoad, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.plan import CompressedPrompt, ModelInfo, Route
from presift.core.policies import Policy
from presift.core.spans import Span
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.rpc.deadline import Deadline
from presift.rpc.pool.replica import ReplicaStatus


class MaskRejected(DraftUnavailable):
    """The draft's answer cannot be used: it has no mask, or one that drops tokens that must be kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The draft's answer.

    `importance`: float32[prompt_tokens], only if requested. With it `mass`: float32[prompt_tokens], the attention mass
    that coverage is a share of, None if the draft does not report it. `queue_ms`: time in the draft's queue.
    `cached_tokens`: how many of the prompt's tokens the draft had kept of an earlier prompt.
    """

    prompt: CompressedPrompt
    importance: NDArray[np.float32] | None
    mass: NDArray[np.float32] | None = None
    queue_ms: float = 0.0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class DraftRequest:
    """The prompt that a draft scores; `token_ids` uint32[tokens]. Prompts with different salts share nothing that a
    draft keeps."""

    token_ids: NDArray[np.uint32]
    policy: Policy
    protected: tuple[Span, ...]
    salt: str
    include_importance: bool = False


class DraftScorer(Protocol):
    """Scores prompts.

    Raises DraftUnavailable (MaskRejected), Overloaded, DeadlineExceeded or InvalidRequest.
    """

    async def score(self, request: DraftRequest, deadline: Deadline) -> Score: ...


class Draft(DraftScorer, Protocol):
    """A draft service, with the errors of `DraftScorer`."""

    def statuses(self) -> list[ReplicaStatus]: ...

    async def info(self) -> ModelInfo: ...


@dataclass(frozen=True, slots=True)
class Usage(Finished):
    """The end of a target's stream. `ttft_ms` is the time from the request's arrival at the target to its first token.

    `replica` names the process that answered, `load` is its engine's last known load. `migrated`: a second target
    continued the answer; the counts are those of the whole answer, the rest is what the second target reported.
    """

    ttft_ms: float = field(kw_only=True)
    replica: str = ""
    load: EngineLoad | None = None
    migrated: bool = False


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """The target's model, the routes that its running engine supports, why it does not support the others, and the
    process that reports this. The parsers separate the text of answers; empty if there is none. `grammars`: whether it
    can restrict answers by a grammar. `engine`: its name and version."""

    model: ModelInfo
    supported: frozenset[Route]
    unsupported: Mapping[Route, str] = field(default_factory=dict)
    kv_page_tokens: int = 1
    kv_pool_tokens: int = 0
    replica: str = ""
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    grammars: bool = False
    engine: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaRef:
    """A replica by its name, empty for any, and the affinity key that chooses another one if it fails: one like
    `target`, for which the request was planned. None: any that is used."""

    name: str = ""
    key: str = ""
    target: TargetInfo | None = field(default=None, compare=False)


ANY_REPLICA = ReplicaRef()


@dataclass(frozen=True, slots=True, eq=False)
class TargetRequest:
    """What a target is to generate; `token_ids` uint32[tokens]. Requests with different salts share no KV. With an
    `answer_format` the deltas have their text."""

    token_ids: NDArray[np.uint32]
    sampling: Sampling
    salt: str
    kv_plan: KvPlan | None = None
    answer_format: AnswerFormat | None = None


# The request for the rest of an answer, from its tokens so far; None if it cannot be continued.
RemainderOf = Callable[[Sequence[int]], TargetRequest | None]


class AnswerCall(Protocol):
    """One answer of a target."""

    def events(self) -> AsyncGenerator[AnswerDelta | Usage, None]:
        """New pieces as they arrive, then exactly one Usage. To be read in a task that is never cancelled, as
        `read_ahead` does; `cancel` ends it."""
        ...

    def read_ahead(self) -> AsyncGenerator[AnswerDelta | Usage, None]:
        """The same, read in a task of its own; closing the generator aborts the request."""
        ...

    def cancel(self) -> None:
        """Abort the request."""
        ...


class Target(Protocol):
    """A target service. Raises TargetUnavailable, Overloaded, DeadlineExceeded, InvalidRequest or RouteUnsupported.

    An error after the first token carries the number of tokens in its `details`: `delivered_tokens`.
    """

    def statuses(self) -> list[ReplicaStatus]: ...

    def replicas(self, tokens: TokenizedPrompt) -> Sequence[ReplicaRef]:
        """The replicas that may answer this prompt, the one with its affinity first; empty if none can be reached."""
        ...

    def reserve(self, replica: ReplicaRef) -> AbstractContextManager[None]:
        """Count a request that is still on its way to the replica, until the block ends."""
        ...

    async def info(self) -> TargetInfo: ...

    def generate(
        self,
        request: TargetRequest,
        deadline: Deadline,
        *,
        replica: ReplicaRef = ANY_REPLICA,
        remainder: RemainderOf | None = None,
    ) -> AnswerCall:
        """A call that begins when its events are read.

        With `remainder`, another replica continues the answer, once, if its replica is lost after the first token.
        """
        ...

    async def prefill(self, token_ids: NDArray[np.uint32], salt: str, replica: ReplicaRef = ANY_REPLICA) -> None:
        """Read a prompt into the radix cache; returns when it is there. Cancelling aborts it."""
        ...
