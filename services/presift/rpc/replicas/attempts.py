"""Attempts: a call that another replica may answer where one cannot."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_incrementing

T = TypeVar("T")

ATTEMPTS = 3
# What says that this replica did nothing: it is away, it is ending, it is full.
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Patience:
    """What is left of `timeout_s` seconds; None is for ever."""

    def __init__(self, timeout_s: float | None) -> None:
        self._until = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())


async def attempted(call: Callable[[], Awaitable[T]], patience: Patience, attempts: int = ATTEMPTS) -> T:
    """What `call` returns, called again while it fails in a way that another replica may not, and there is time.

    Raises what the last attempt raised.
    """

    def elsewhere(error: BaseException) -> bool:
        is_over = patience.left_s is not None and patience.left_s <= 0.0
        return isinstance(error, grpc.aio.AioRpcError) and error.code() in _ELSEWHERE and not is_over

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(elsewhere),
        stop=stop_after_attempt(attempts),
        wait=wait_incrementing(start=0.0, increment=0.05),
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("tenacity ended without a result")
