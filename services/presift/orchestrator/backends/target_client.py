"""The target service over gRPC, one replica or many: the `Target` port.

A call that fails because its replica is unreachable or full is sent to another one, at most twice, while time is left
and before its first token. After it, another replica continues the answer if the caller says how (`RemainderOf`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import NDArray

from presift.core.answer import AnswerDelta
from presift.core.errors import PresiftError, TargetUnavailable
from presift.orchestrator.backends.affinity import affinity_key
from presift.orchestrator.backends.services import count_pick, fetch_target_info, target_error, target_pool
from presift.orchestrator.backends.stream_reader import read_ahead
from presift.orchestrator.backends.target_codec import request_to_wire, usage_from_wire
from presift.orchestrator.domain.ports import ANY_REPLICA, RemainderOf, ReplicaRef, TargetInfo, TargetRequest, Usage
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.rpc import answer_codec
from presift.rpc.deadline import Deadline
from presift.rpc.large_input import LARGE_BYTES, in_thread_if_large
from presift.rpc.pool.balancer import least_loaded, within_bound
from presift.rpc.pool.quarantine import Quarantine, digest_of
from presift.rpc.pool.replica import Replica, ReplicaStatus
from presift.rpc.pool.retry import ATTEMPTS, RETRYABLE, AttemptedReplicas, with_failover
from presift.rpc.security.peer import PLAIN, Peer
from presift.telemetry.metrics import count
from presift.v1 import target_pb2, target_pb2_grpc

if TYPE_CHECKING:  # these stubs' types exist for the type checker alone
    from presift.rpc.pool.pool import ReplicaPool

    _Target = Replica[target_pb2_grpc.TargetServiceAsyncStub, TargetInfo]
    _Pool = ReplicaPool[target_pb2_grpc.TargetServiceAsyncStub, TargetInfo]

log = logging.getLogger(__name__)


class TargetClient:
    """The targets at `address` (see `parse_addresses`). The caller names the replica; else the least loaded
    one is asked.

    An answer that has begun ends with TargetUnavailable if nothing more comes for `idle_s` seconds; None: never.
    Only targets that run `model` are used (see `other_target`); if it is empty, those of the model that most run.
    """

    def __init__(
        self,
        address: str,
        max_message_bytes: int,
        peer: Peer = PLAIN,
        *,
        idle_s: float | None = None,
        model: str = "",
    ) -> None:
        self._idle_s = idle_s
        self._pool = target_pool(address, max_message_bytes, peer, model)
        self._quarantine = Quarantine()
        # The last prompt, and its digest: the choices of a request have the same array.
        self._digested: tuple[NDArray[np.uint32] | None, bytes] = (None, b"")

    def statuses(self) -> list[ReplicaStatus]:
        """The status of every replica."""
        return self._pool.statuses()

    async def info(self) -> TargetInfo:
        if not self._pool.is_alone:
            return await self._pool.info()
        info = (await fetch_target_info(self._pool.only.stub)).info
        if refusal := self._pool.refusal(info):
            raise TargetUnavailable(f"the target is not used: {refusal}")
        return info

    def on_switch(self, call: Callable[[TargetInfo], None]) -> None:
        """`call` gets the info of the targets that are used from now on, whenever they are of another kind."""
        self._pool.on_switch(call)

    def replicas(self, tokens: TokenizedPrompt) -> Sequence[ReplicaRef]:
        if self._pool.is_alone or not self._pool.usable():
            return ()
        key = affinity_key(tokens)
        target = self._pool.reference
        return [ReplicaRef(each.name, key, target) for each in within_bound(self._pool.pick(key))]

    def reserve(self, replica: ReplicaRef) -> AbstractContextManager[None]:
        found = self._pool.named(replica.name, replica.target)
        return nullcontext() if found is None else found.counted()

    def generate(
        self,
        request: TargetRequest,
        deadline: Deadline,
        *,
        replica: ReplicaRef = ANY_REPLICA,
        remainder: RemainderOf | None = None,
    ) -> TargetCall:
        limits, tried = _Limits(deadline, self._idle_s), self._attempts(request.token_ids)
        return TargetCall(self._pool, request, limits, replica, tried, remainder=remainder)

    async def prefill(self, token_ids: NDArray[np.uint32], salt: str, replica: ReplicaRef = ANY_REPLICA) -> None:
        """Never fails over: the answer will be asked for at this replica. A named replica counts as busy already (see
        `reserve`)."""
        request = await in_thread_if_large(
            token_ids.nbytes, lambda: target_pb2.PrefillRequest(token_ids=token_ids.tolist(), cache_salt=salt)
        )
        named = self._pool.named(replica.name, replica.target)
        tried = self._attempts(token_ids)
        try:
            asked = named or picked(self._pool, replica, tried)
            with nullcontext() if named else asked.counted(), tried.attempt(asked), asked.record_outcome(None):
                await asked.stub.Prefill(request)
        except grpc.aio.AioRpcError as failure:
            raise target_error(failure) from failure

    async def aclose(self) -> None:
        await self._pool.aclose()

    def _attempts(self, token_ids: NDArray[np.uint32]) -> AttemptedReplicas[_Target]:
        known, digest = self._digested
        if known is not token_ids:
            digest = digest_of(token_ids)
            self._digested = token_ids, digest
        return AttemptedReplicas(self._quarantine, digest)


@dataclass(frozen=True, slots=True)
class _Limits:
    """The times of a call: its deadline, and how long it may be silent once its answer has begun."""

    deadline: Deadline
    idle_s: float | None


@dataclass(frozen=True, slots=True)
class _Opened:
    """A stream whose first event has arrived. Closing `held` ends it."""

    first: target_pb2.TargetServiceGenerateResponse | None
    events: AsyncIterator[target_pb2.TargetServiceGenerateResponse]
    replica: _Target
    held: ExitStack


class _Watched:
    """The events of a stream; raises TimeoutError if one is waited for longer than `idle_s`.

    The reader is not cancelled but the stream, see `stream_reader`. One timer a call, not one an event.
    """

    def __init__(
        self,
        events: AsyncIterator[target_pb2.TargetServiceGenerateResponse],
        replica: _Target,
        cancel: Callable[[], object],
        idle_s: float,
    ) -> None:
        self._events = events
        self._replica = replica
        self._cancel = cancel
        self._idle_s = idle_s
        self._has_fired = False
        self._since_s: float | None = None
        self._timer = asyncio.get_running_loop().call_later(idle_s, self._check)

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> target_pb2.TargetServiceGenerateResponse:
        self._since_s = time.monotonic()
        try:
            return await anext(self._events)
        except asyncio.CancelledError:
            if self._has_fired:
                raise TimeoutError from None
            raise
        finally:
            self._since_s = None

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        left_s = self._idle_s if self._since_s is None else self._since_s + self._idle_s - time.monotonic()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._check)
            return
        self._has_fired = True
        self._replica.record_silence(self._idle_s)
        self._cancel()


class TargetCall:
    """One Generate call."""

    def __init__(
        self,
        pool: _Pool,
        request: TargetRequest,
        limits: _Limits,
        replica: ReplicaRef,
        tried: AttemptedReplicas[_Target],
        *,
        remainder: RemainderOf | None = None,
    ) -> None:
        self._pool = pool
        self._request = request
        self._deadline, self._idle_s = limits.deadline, limits.idle_s
        self._replica = replica
        self._tried = tried
        self._remainder = remainder
        self._answer = list[int]()
        self._has_ended = False
        # The address of the replica that began the answer, if another one continues it.
        self._lost = ""
        self._is_cancelled = False
        self._call: Any = None

    def cancel(self) -> None:
        """Abort the request: `events` ends with CancelledError."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()

    def read_ahead(self) -> AsyncGenerator[AnswerDelta | Usage, None]:
        """`events`, read in a task of its own; closing the generator aborts the request."""
        return read_ahead(self.events(), self.cancel)

    async def events(self) -> AsyncGenerator[AnswerDelta | Usage, None]:
        """New pieces as they arrive, then exactly one Usage. To be read in a task that is never cancelled."""
        while not self._has_ended:
            try:
                async with aclosing(self._part()) as part:
                    async for event in part:
                        yield event
            except grpc.aio.AioRpcError as failure:
                self._tried.record_failure(failure)  # counts once if the attempt has recorded it
                if self._has_ended or not self._migrate(failure):
                    raise target_error(failure, len(self._answer)) from failure
            except TimeoutError:
                raise _broken_off(f"the target sent nothing for {self._idle_s:g} s", len(self._answer)) from None
            except PresiftError as error:
                if self._answer:
                    error.details = {**error.details, "delivered_tokens": str(len(self._answer))}
                raise

    async def _part(self) -> AsyncGenerator[AnswerDelta | Usage, None]:
        """What one replica says: all of the answer, or all that is left of it."""
        opened = await self._opened()
        with opened.held:
            if self._lost:
                record_migration(self._lost, opened.replica.address, len(self._answer))
            migrated_at, event = len(self._answer), opened.first
            while event is not None:
                opened.replica.record_message()
                self._has_ended = event.HasField("usage")
                if self._has_ended:
                    self._tried.record_answer()
                    yield await self._usage(event.usage, opened.replica, migrated_at)
                else:
                    self._answer += event.delta.token_ids
                    yield answer_codec.delta_from_wire(event.delta)
                event = await anext(opened.events, None)
        if not self._has_ended:
            raise TargetUnavailable("the target's stream ended early")

    def _migrate(self, failure: grpc.aio.AioRpcError) -> bool:
        """Ask for the rest of the answer from now on, if another replica may continue it. (The quarantine refuses the
        call of a prompt with which two were lost.)"""
        tried, answer = self._tried, self._answer
        if self._remainder is None or self._lost or not answer or failure.code() not in RETRYABLE:
            return False
        if len(tried.all) >= ATTEMPTS or not self._pool.usable(tried.all, self._replica.target):
            return False
        rest = self._remainder(answer)
        if rest is None or not self._pool.retry_budget.take():
            return False
        self._lost = tried.all[-1].address
        self._request = rest
        return True

    async def _opened(self) -> _Opened:
        deadline, tried = self._deadline, self._tried
        deadline.check()
        message = await request_to_wire(self._request)

        async def attempt() -> _Opened:
            if self._is_cancelled:
                raise asyncio.CancelledError
            replica = picked(self._pool, self._replica, tried)
            left_s = deadline.remaining_s
            with ExitStack() as held:
                held.enter_context(replica.counted())
                self._call = stream = replica.stub.Generate(message, timeout=left_s)
                held.callback(stream.cancel)
                events = aiter(stream)
                with tried.attempt(replica), replica.record_outcome(left_s):
                    first = await anext(events, None)
                if self._idle_s is not None:
                    events = watched = _Watched(events, replica, stream.cancel, self._idle_s)
                    held.callback(watched.stop)
                return _Opened(first, events, replica, held.pop_all())

        attempts = 1 if self._pool.is_alone else ATTEMPTS - len(tried.all)
        return await with_failover(
            attempt,
            deadline,
            attempts,
            has_untried=lambda: bool(self._pool.usable(tried.all, self._replica.target)),
            budget=self._pool.retry_budget,
        )

    async def _usage(self, usage: target_pb2.TargetUsage, replica: _Target, migrated_at: int) -> Usage:
        # A KV mask of 16 MiB takes 128 MiB and a second; so do the log probabilities of 65,536 tokens of the prompt.
        has_mask = usage.HasField("kv_mask")
        size = LARGE_BYTES if has_mask else answer_codec.LOGPROB_BYTES * len(usage.prompt_logprobs)
        found = await in_thread_if_large(size, lambda: usage_from_wire(usage))
        if migrated_at:
            found = _of_whole_answer(found, migrated_at)
        return found if self._pool.is_alone or found.replica else replace(found, replica=replica.name)


def _of_whole_answer(usage: Usage, migrated_at: int) -> Usage:
    """The usage of a target that read the answer's first `migrated_at` tokens as a part of its prompt."""
    prompt_tokens = usage.prompt_tokens - migrated_at
    return replace(
        usage,
        prompt_tokens=prompt_tokens,
        kv_tokens=usage.kv_tokens - migrated_at,
        cached_tokens=min(usage.cached_tokens, prompt_tokens),
        completion_tokens=usage.completion_tokens + migrated_at,
        prompt_logprobs=usage.prompt_logprobs[:prompt_tokens],
        migrated=True,
    )


def record_migration(lost: str, address: str, tokens: int) -> None:
    """Count and log that the target at `address` continues an answer, of which the one at `lost` sent `tokens`."""
    count("presift.replica.migrations")
    log.warning("target %s was lost after %d tokens of an answer; %s continues it", lost, tokens, address)


def _broken_off(why: str, delivered: int) -> TargetUnavailable:
    details = {"delivered_tokens": str(delivered)} if delivered else {}
    return TargetUnavailable(why, **details)


def picked(pool: _Pool, wanted: ReplicaRef, tried: AttemptedReplicas[_Target]) -> _Target:
    """The wanted replica at the first attempt; else the next by affinity, or the least loaded one."""
    named = None if tried.all else pool.named(wanted.name, wanted.target)
    if named is not None:
        return named
    found = pool.pick(wanted.key, tried, wanted.target)
    if pool.is_alone:
        return found[0]
    count_pick("target", "failover" if tried.all else "least_load")
    return within_bound(found)[0] if wanted.key else least_loaded(found)
