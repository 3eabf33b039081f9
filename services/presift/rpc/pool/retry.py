"""Attempts: a call that another replica may answer where one cannot."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_incrementing

from presift.core.errors import Overloaded
from presift.rpc.status import error_of

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3
# What says that this replica did nothing: it is away, it is ending. Full is another matter: it must not be asked again.
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class AttemptedReplicas(Generic[R]):
    """The replicas that were asked for one request, and which of them said that they are full."""

    def __init__(self) -> None:
        self.all: list[R] = []
        self.full: list[R] = []

    @contextmanager
    def asking(self, replica: R) -> Iterator[None]:
        """The block asks it."""
        self.all.append(replica)
        try:
            yield
        except grpc.aio.AioRpcError as failure:
            if _is_full(failure):
                self.full.append(replica)
            raise


def _is_full(failure: grpc.aio.AioRpcError) -> bool:
    """In its own words: gRPC says RESOURCE_EXHAUSTED of a message that is too large, which it is everywhere."""
    return failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(error_of(failure), Overloaded)


class Patience:
    """What is left of `timeout_s` seconds; None is for ever."""

    def __init__(self, timeout_s: float | None) -> None:
        self._until = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())


async def with_failover(
    call: Callable[[], Awaitable[T]],
    patience: Patience,
    attempts: int = ATTEMPTS,
    *,
    has_untried: Callable[[], bool],
) -> T:
    """What `call` returns, called again while it fails in a way that another replica may not, and there is time; where
    one was full, only while there is one that was not asked.

    Raises what the last attempt raised.
    """

    def elsewhere(error: BaseException) -> bool:
        if not isinstance(error, grpc.aio.AioRpcError) or (patience.left_s is not None and patience.left_s <= 0.0):
            return False
        return error.code() in _ELSEWHERE or (_is_full(error) and has_untried())

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(elsewhere),
        stop=stop_after_attempt(attempts),
        wait=wait_incrementing(start=0.0, increment=0.05),
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("tenacity ended without a result")
