"""Draft and target over gRPC, each one or many: the ports of `ports.py`.

A call that meets nobody, or a full queue, goes on to another replica: at most twice, while there is time, and a
target's only before its first token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import grpc
import numpy as np
from numpy.typing import NDArray

from presift.core.errors import DraftUnavailable, TargetUnavailable
from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo
from presift.core.policies import Policy
from presift.core.spans import Span
from presift.orchestrator.backends.affinity import key_of
from presift.orchestrator.backends.draft_codec import score_from_wire
from presift.orchestrator.backends.remote_services import (
    ask_draft,
    ask_target,
    draft_error,
    drafts_at,
    target_error,
    targets_at,
)
from presift.orchestrator.backends.target_codec import sampling_to_wire, usage_from_wire
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, Score, TargetInfo, Usage
from presift.orchestrator.domain.request import Sampling
from presift.rpc import codec
from presift.rpc.client.stream_reader import read_stream
from presift.rpc.pool.balancer import least_loaded, within_bound
from presift.rpc.pool.hedging import hedged
from presift.rpc.pool.replica import Replica, ReplicaStatus
from presift.rpc.pool.retry import ATTEMPTS, AttemptedReplicas, Patience, with_failover
from presift.rpc.security.peer import PLAIN, Peer
from presift.telemetry.metrics import count
from presift.v1 import draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc

if TYPE_CHECKING:  # these stubs' types exist for the type checker alone
    _Draft = Replica[draft_pb2_grpc.DraftServiceAsyncStub, ModelInfo]
    _Target = Replica[target_pb2_grpc.TargetServiceAsyncStub, TargetInfo]


@dataclass(frozen=True, slots=True)
class _Scoring:
    """One prompt to score; `tried`: the drafts that were asked."""

    request: draft_pb2.ScoreRequest
    key: str
    patience: Patience
    tried: AttemptedReplicas[_Draft]


class DraftClient:
    """The drafts at `address` (see `where_of`): the least loaded is asked; of equals, the prompt's own. Where it has
    not answered after `hedge_after_s` seconds, one other is asked too."""

    def __init__(
        self, address: str, max_message_bytes: int, peer: Peer = PLAIN, *, hedge_after_s: float | None = None
    ) -> None:
        self._fleet = drafts_at(address, max_message_bytes, peer)
        self._hedge_after_s = hedge_after_s

    @property
    def width(self) -> int:
        """How many drafts can work at once."""
        return max(1, len(self._fleet.usable()))

    def standings(self) -> list[ReplicaStatus]:
        """How the replicas stand."""
        return self._fleet.standings()

    async def info(self) -> ModelInfo:
        if self._fleet.is_alone:
            return (await ask_draft(self._fleet.only.stub)).info
        return await self._fleet.first()

    async def score(
        self,
        token_ids: NDArray[np.uint32],
        policy: Policy,
        protected: tuple[Span, ...],
        *,
        include_importance: bool,
        timeout_s: float,
    ) -> Score:
        request = draft_pb2.ScoreRequest(
            token_ids=token_ids.tolist(),
            policy=codec.policy_to_wire(policy),
            protected_spans=codec.spans_to_wire(protected),
            include_importance=include_importance,
        )
        key = "" if self._fleet.is_alone else key_of(token_ids)
        if self._fleet.is_alone and not self._fleet.only.may_be_asked:
            # Who waits for a draft that is away or hangs has the less time to be read in full.
            raise DraftUnavailable("the draft failed again and again; it is asked again in some seconds")
        try:
            return score_from_wire(await self._hedged(_Scoring(request, key, Patience(timeout_s), AttemptedReplicas())))
        except grpc.aio.AioRpcError as failure:
            raise draft_error(failure) from failure

    async def aclose(self) -> None:
        await self._fleet.aclose()

    async def _hedged(self, scoring: _Scoring) -> draft_pb2.ScoreResponse:
        if self._hedge_after_s is None or self._fleet.is_alone:
            return await self._scored(scoring)
        first, second = partial(self._scored, scoring), partial(self._scored_elsewhere, scoring)
        reply, was_second = await hedged(first, second, self._hedge_after_s)
        if was_second:
            count("presift.replica.hedges", role="draft", outcome="won")
        return reply

    async def _scored(self, scoring: _Scoring, attempts: int = ATTEMPTS) -> draft_pb2.ScoreResponse:
        async def call() -> draft_pb2.ScoreResponse:
            replica = least_loaded(self._fleet.pick(scoring.key, scoring.tried))
            if not self._fleet.is_alone:
                _count("draft", "failover" if scoring.tried.all else "least_load")
            left_s = scoring.patience.left_s
            with scoring.tried.asking(replica), replica.counted(), replica.judged(left_s):
                return await replica.stub.Score(scoring.request, timeout=left_s)

        # With a single address gRPC itself tries again.
        attempts = 1 if self._fleet.is_alone else attempts
        return await with_failover(call, scoring.patience, attempts, has_untried=lambda: self._has_untried(scoring))

    def _has_untried(self, scoring: _Scoring) -> bool:
        return bool(self._fleet.usable(scoring.tried.all))

    async def _scored_elsewhere(self, scoring: _Scoring) -> draft_pb2.ScoreResponse:
        if not self._has_untried(scoring):
            raise DraftUnavailable("there is no other draft")
        count("presift.replica.hedges", role="draft", outcome="sent")
        return await self._scored(scoring, attempts=1)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A stream whose first event has come: from whom, and what holds it."""

    first: target_pb2.TargetServiceGenerateResponse | None
    events: AsyncIterator[target_pb2.TargetServiceGenerateResponse]
    replica: _Target
    held: ExitStack


class TargetClient:
    """The targets at `address` (see `where_of`). Whoever calls says where; else the least loaded is asked."""

    def __init__(self, address: str, max_message_bytes: int, peer: Peer = PLAIN) -> None:
        self._fleet = targets_at(address, max_message_bytes, peer)

    def standings(self) -> list[ReplicaStatus]:
        """How the replicas stand."""
        return self._fleet.standings()

    async def info(self) -> TargetInfo:
        if self._fleet.is_alone:
            return (await ask_target(self._fleet.only.stub)).info
        return await self._fleet.first()

    @property
    def has_choice(self) -> bool:
        return not self._fleet.is_alone

    def seats(self, key: str) -> Sequence[ReplicaRef]:
        if not self._fleet.usable():
            return ()
        return [ReplicaRef(each.name, key) for each in within_bound(self._fleet.pick(key))]

    def holding(self, seat: ReplicaRef) -> AbstractContextManager[None]:
        replica = self._fleet.named(seat.replica)
        return nullcontext() if replica is None else replica.counted()

    async def generate(
        self,
        token_ids: NDArray[np.uint32],
        sampling: Sampling,
        cache_salt: str,
        timeout_s: float | None,
        kv_plan: KvPlan | None = None,
        *,
        at: ReplicaRef = ANY_REPLICA,
    ) -> AsyncGenerator[tuple[int, ...] | Usage, None]:
        request = target_pb2.TargetServiceGenerateRequest(
            token_ids=token_ids.tolist(),
            sampling=sampling_to_wire(sampling),
            cache_salt=cache_salt,
            kv_plan=None if kv_plan is None else codec.kv_plan_to_wire(kv_plan),
        )
        has_ended, delivered = False, 0
        try:
            opened = await self._opened(request, at, Patience(timeout_s))
            with opened.held:
                event = opened.first
                while event is not None:
                    opened.replica.spoke()
                    has_ended = event.HasField("usage")
                    if has_ended:
                        yield self._usage(event.usage, opened.replica)
                    else:
                        delivered += len(event.delta.token_ids)
                        yield tuple(event.delta.token_ids)
                    event = await anext(opened.events, None)
        except grpc.aio.AioRpcError as failure:
            raise target_error(failure, delivered) from failure
        if not has_ended:
            told = {"delivered_tokens": str(delivered)} if delivered else {}
            raise TargetUnavailable("the target's stream ended early", **told)

    async def prefill(
        self, token_ids: NDArray[np.uint32], cache_salt: str, timeout_s: float | None, at: ReplicaRef = ANY_REPLICA
    ) -> None:
        """Not elsewhere where it fails: there nobody would look for what was read. Who has a seat there counts already
        (`holding`)."""
        request = target_pb2.PrefillRequest(token_ids=token_ids.tolist(), cache_salt=cache_salt)
        seated = self._fleet.named(at.replica)
        try:
            replica = seated or self._picked(at, AttemptedReplicas())
            with nullcontext() if seated else replica.counted(), replica.judged(timeout_s):
                await replica.stub.Prefill(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as failure:
            raise target_error(failure) from failure

    async def aclose(self) -> None:
        await self._fleet.aclose()

    async def _opened(
        self, request: target_pb2.TargetServiceGenerateRequest, at: ReplicaRef, patience: Patience
    ) -> _Opened:
        tried: AttemptedReplicas[_Target] = AttemptedReplicas()

        async def call() -> _Opened:
            replica = self._picked(at, tried)
            left_s = patience.left_s
            with ExitStack() as held:
                held.enter_context(replica.counted())
                stream = replica.stub.Generate(request, timeout=left_s)
                held.callback(stream.cancel)
                events = read_stream(stream)
                with tried.asking(replica), replica.judged(left_s):
                    first = await anext(events, None)
                return _Opened(first, events, replica, held.pop_all())

        attempts = 1 if self._fleet.is_alone else ATTEMPTS
        return await with_failover(call, patience, attempts, has_untried=lambda: bool(self._fleet.usable(tried.all)))

    def _picked(self, at: ReplicaRef, tried: AttemptedReplicas[_Target]) -> _Target:
        chosen = None if tried.all else self._fleet.named(at.replica)
        if chosen is not None:
            return chosen
        found = self._fleet.pick(at.key, tried)
        if self._fleet.is_alone:
            return found[0]
        _count("target", "failover" if tried.all else "least_load")
        return within_bound(found)[0] if at.key else least_loaded(found)

    def _usage(self, usage: target_pb2.TargetUsage, replica: _Target) -> Usage:
        told = usage_from_wire(usage)
        return told if self._fleet.is_alone or told.replica else replace(told, replica=replica.name)


def _count(role: str, by: str) -> None:
    count("presift.replica.picked", role=role, by=by)
    if by == "failover":
        count("presift.replica.failovers", role=role)
