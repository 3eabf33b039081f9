"""Failover: a call that one replica could not answer is sent to another one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Generic, TypeVar

import grpc
from tenacity import AsyncRetrying, RetryCallState, wait_incrementing

from presift.core.errors import Overloaded
from presift.rpc.deadline import Deadline
from presift.rpc.pool.quarantine import Quarantine
from presift.rpc.status import error_of

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3
_SHARE, _BURST = 0.2, 10.0
# With these codes the replica did no work (it is unreachable or it stops), or it died: see quarantine.py. A full
# replica is called at most once per request.
RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class AttemptedReplicas(Generic[R]):
    """The replicas that were called for one request, and those among them that were full."""

    def __init__(self, quarantine: Quarantine | None = None, suspect: bytes = b"") -> None:
        """`suspect` is the digest of the request in `quarantine`."""
        self.all: list[R] = []
        self.full: list[R] = []
        self._quarantine = Quarantine() if quarantine is None else quarantine
        self._suspect = suspect
        self._began = 0.0

    @contextmanager
    def attempt(self, replica: R) -> Iterator[None]:
        """Record that the block calls `replica`, and whether it was full or died.

        Raises InternalError if too many replicas died with this request.
        """
        self._quarantine.check(self._suspect)
        self.all.append(replica)
        began = self._began = monotonic()
        try:
            yield
        except grpc.aio.AioRpcError as failure:
            if _is_full(failure):
                self.full.append(replica)
            self._quarantine.record_failure(self._suspect, replica, began, failure)
            raise

    def record_failure(self, failure: grpc.aio.AioRpcError) -> None:
        """Record whether the replica that was called last died after `attempt`'s block."""
        self._quarantine.record_failure(self._suspect, self.all[-1], self._began, failure)

    def record_answer(self) -> None:
        """The request was answered completely."""
        self._quarantine.record_answer(self._suspect)


class RetryBudget:
    """Limits how many requests that a full replica refused, and how many answers that a lost replica began, are sent to
    another one: a fifth of all requests, and `_BURST` at once. Otherwise a full service would be asked three times as
    much."""

    def __init__(self) -> None:
        self._left = _BURST

    def record_request(self) -> None:
        self._left = min(_BURST, self._left + _SHARE)

    def take(self) -> bool:
        """Whether one more may be sent again."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def _is_full(failure: grpc.aio.AioRpcError) -> bool:
    """Only by presift's own error: gRPC also says RESOURCE_EXHAUSTED of a message that every replica would refuse."""
    return failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(error_of(failure), Overloaded)


async def with_failover(
    call: Callable[[], Awaitable[T]],
    deadline: Deadline,
    attempts: int = ATTEMPTS,
    *,
    has_untried: Callable[[], bool],
    budget: RetryBudget,
) -> T:
    """The result of `call`, repeated after failures that another replica may not have, until `deadline`.

    After a replica was full, it is repeated only while `has_untried` says that some replica was not called yet, and
    within the budget.
    Raises what the last attempt raised.
    """

    def is_repeated(state: RetryCallState) -> bool:
        error = None if state.outcome is None else state.outcome.exception()
        if state.attempt_number >= attempts or deadline.remaining_s == 0.0:
            return False
        if not isinstance(error, grpc.aio.AioRpcError):
            return False
        return error.code() in RETRYABLE or (_is_full(error) and has_untried() and budget.take())

    budget.record_request()
    async for attempt in AsyncRetrying(
        retry=is_repeated,  # not by `stop`: the last attempt must take nothing from the budget
        wait=wait_incrementing(start=0.0, increment=0.05),
    ):
        with attempt:
            return await call()
    raise AssertionError("tenacity ended without a result")
