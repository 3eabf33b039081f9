"""The calls under way on a server: bounded as a last resort, waited for when it drains, cut when that takes too long.

Services bound their own queues, and say more when they refuse. Health is counted apart: a full server is not ill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from presift.core.errors import Overloaded, ShuttingDown
from presift.rpc.server.refusal import HEALTH_PREFIX, refusing

if TYPE_CHECKING:  # grpc generics exist in the stubs alone
    Handler = grpc.RpcMethodHandler[Any, Any]

_RETRY_AFTER_S = 1.0


class ActiveCalls(grpc.aio.ServerInterceptor):
    """Stands last, next to the services. A call counts from its first header on, its message need not have come.

    Calls that come by another door than gRPC are counted here too: see `take`.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._running: set[asyncio.Task[Any]] = set()
        self._health: set[asyncio.Task[Any]] = set()
        self._cut: set[asyncio.Task[Any]] = set()
        self._none_runs = asyncio.Event()
        self._none_runs.set()
        self._takes_none = False

    @property
    def running(self) -> int:
        """How many are under way. (Not a length: gRPC passes over an interceptor that is falsy.)"""
        return len(self._running)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        task, is_health = asyncio.current_task(), handler_call_details.method.startswith(HEALTH_PREFIX)
        calls = self._health if is_health else self._running
        if handler is None or task is None:
            return handler
        try:
            self._enter(task, calls)
        except Overloaded as error:
            return refusing(error)
        return handler

    def take(self) -> None:
        """The current task is a call from now on, until it ends. For calls that gRPC does not know of.

        Raises Overloaded, and ShuttingDown in a drain.
        """
        task = asyncio.current_task()
        if self._takes_none:
            raise ShuttingDown("the service is shutting down: it takes no new call")
        if task is not None:
            self._enter(task, self._running)

    def close(self) -> None:
        """`take` takes none from now on; gRPC refuses its own by itself."""
        self._takes_none = True

    async def ended(self, within_s: float) -> None:
        """Wait until none is under way, or as long as that."""
        try:
            async with asyncio.timeout(within_s):
                await self._none_runs.wait()
        except TimeoutError:
            return

    def cut(self) -> None:
        """End those that are still under way, as `why_cut` says; watches of health, which have no end, among them.

        To be called again: calls that gRPC had taken before it stopped may only begin now.
        """
        fresh = (self._running | self._health) - self._cut
        self._cut |= fresh
        for task in fresh:
            task.cancel()

    def why_cut(self) -> ShuttingDown | None:
        """What to tell the caller of the current call, if its cancellation is ours."""
        return ShuttingDown("the service is shutting down") if asyncio.current_task() in self._cut else None

    def _enter(self, task: asyncio.Task[Any], calls: set[asyncio.Task[Any]]) -> None:
        if len(calls) >= self._max_calls:
            raise Overloaded("calls", len(calls), f"< {self._max_calls}", _RETRY_AFTER_S)
        calls.add(task)
        task.add_done_callback(self._ended)
        self._tell()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        for calls in (self._running, self._health, self._cut):
            calls.discard(task)
        self._tell()

    def _tell(self) -> None:
        if self._running:
            self._none_runs.clear()
        else:
            self._none_runs.set()
