"""The draft service over gRPC, one replica or many: the `Draft` port.

A call that fails because its replica is unreachable or full is sent to another one, at most twice, while time is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc
import numpy as np
from numpy.typing import NDArray

from presift.core.errors import DraftUnavailable
from presift.core.plan import ModelInfo
from presift.orchestrator.backends.affinity import key_of
from presift.orchestrator.backends.draft_codec import score_from_wire, score_to_wire
from presift.orchestrator.backends.draft_picker import DraftPicker, PrefixMemory
from presift.orchestrator.backends.services import count_pick, draft_error, draft_pool, fetch_draft_info
from presift.orchestrator.domain.ports import DraftRequest, Score
from presift.rpc.deadline import Deadline
from presift.rpc.large_input import in_thread_if_large
from presift.rpc.pool.hedging import hedged
from presift.rpc.pool.quarantine import Quarantine, digest_of
from presift.rpc.pool.replica import Replica, ReplicaStatus
from presift.rpc.pool.retry import ATTEMPTS, AttemptedReplicas, with_failover
from presift.rpc.security.peer import PLAIN, Peer
from presift.telemetry.metrics import count
from presift.telemetry.tracing import current_span_ref
from presift.v1 import draft_pb2, draft_pb2_grpc

if TYPE_CHECKING:  # these stubs' types exist for the type checker alone
    _Draft = Replica[draft_pb2_grpc.DraftServiceAsyncStub, ModelInfo]


@dataclass(frozen=True, slots=True, eq=False)
class _ScoreCall:
    """One prompt to score, uint32[n]; `tried` are the drafts that were called."""

    token_ids: NDArray[np.uint32]
    request: draft_pb2.ScoreRequest
    key: str
    deadline: Deadline
    tried: AttemptedReplicas[_Draft]


class DraftClient:
    """The drafts at `address` (see `parse_addresses`). The one that has least to read is asked; affinity breaks ties.

    `memory` holds what each draft has read. If a draft has not answered after `hedge_after_s` seconds, one other is
    asked too.
    """

    def __init__(
        self,
        address: str,
        max_message_bytes: int,
        memory: PrefixMemory,
        peer: Peer = PLAIN,
        *,
        hedge_after_s: float | None = None,
    ) -> None:
        self._pool = draft_pool(address, max_message_bytes, peer)
        self._picker = DraftPicker(memory)
        self._hedge_after_s = hedge_after_s
        self._quarantine = Quarantine()

    @property
    def width(self) -> int:
        """How many prompts the drafts can score at once."""
        return max(1, len(self._pool.usable()))

    def statuses(self) -> list[ReplicaStatus]:
        """The status of every replica."""
        return self._pool.statuses()

    async def info(self) -> ModelInfo:
        if self._pool.is_alone:
            return (await fetch_draft_info(self._pool.only.stub)).info
        return await self._pool.info()

    async def score(self, request: DraftRequest, deadline: Deadline) -> Score:
        made_in, token_ids = current_span_ref(), request.token_ids
        message = await in_thread_if_large(token_ids.nbytes, lambda: score_to_wire(request))
        key = "" if self._pool.is_alone else key_of(token_ids)
        if self._pool.is_alone and not self._pool.only.allows_call:
            # Waiting for a draft that is unreachable or hangs would use up the time for the full prompt.
            raise DraftUnavailable("the draft failed repeatedly; the circuit breaker tries it again in a few seconds")
        try:
            tried: AttemptedReplicas[_Draft] = AttemptedReplicas(self._quarantine, digest_of(token_ids))
            reply = await self._hedged(_ScoreCall(token_ids, message, key, deadline, tried))
            tried.record_answer()
            return score_from_wire(reply, made_in)
        except grpc.aio.AioRpcError as failure:
            raise draft_error(failure) from failure

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _hedged(self, call: _ScoreCall) -> draft_pb2.ScoreResponse:
        if self._hedge_after_s is None or self._pool.is_alone:
            return await self._scored(call)
        first, second = partial(self._scored, call), partial(self._scored_elsewhere, call)
        reply, was_second = await hedged(first, second, self._hedge_after_s)
        if was_second:
            count("presift.replica.hedges", role="draft", outcome="won")
        return reply

    async def _scored(self, call: _ScoreCall, attempts: int = ATTEMPTS) -> draft_pb2.ScoreResponse:
        async def attempt() -> draft_pb2.ScoreResponse:
            drafts = self._pool.pick(call.key, call.tried)
            return await (self._asked(drafts[0], call) if self._pool.is_alone else self._chosen(drafts, call))

        # For a single address gRPC itself retries.
        attempts = 1 if self._pool.is_alone else attempts
        return await with_failover(
            attempt,
            call.deadline,
            attempts,
            has_untried=lambda: self._has_untried(call),
            budget=self._pool.retry_budget,
        )

    async def _chosen(self, drafts: Sequence[_Draft], call: _ScoreCall) -> draft_pb2.ScoreResponse:
        salt = call.request.cache_salt
        draft, unread = self._picker.best(drafts, call.token_ids, salt)
        is_kept = unread < call.token_ids.size
        count_pick("draft", "failover" if call.tried.all else "prefix" if is_kept else "least_load")
        with self._picker.reading(draft, unread):
            reply = await self._asked(draft, call)
        self._picker.record(draft, call.token_ids, salt, reply.cached_tokens)
        return reply

    async def _asked(self, draft: _Draft, call: _ScoreCall) -> draft_pb2.ScoreResponse:
        left_s = call.deadline.remaining_s
        with call.tried.attempt(draft), draft.counted(), draft.record_outcome(left_s):
            return await draft.stub.Score(call.request, timeout=left_s)

    def _has_untried(self, call: _ScoreCall) -> bool:
        return bool(self._pool.usable(call.tried.all))

    async def _scored_elsewhere(self, call: _ScoreCall) -> draft_pb2.ScoreResponse:
        if not self._has_untried(call):
            raise DraftUnavailable("there is no other draft")
        count("presift.replica.hedges", role="draft", outcome="sent")
        return await self._scored(call, attempts=1)
