"""The running calls of a server: limits their number and the bytes of their requests, and waits for them or cancels
them when the server drains.

The limit of their number is the last resort: services limit their own queues and give better errors. Health checks have
no limit, and health watches have one of their own, so that a full server still answers probes. Otherwise a caller
without a key could make them fail, and Kubernetes would restart the pod. Watches need no key, so each host has a share
of them.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

from presift.core.errors import Overloaded, ShuttingDown
from presift.rpc.server.handlers import CHECK, HEALTH_PREFIX, Continuation, Handler, error_handler
from presift.rpc.server.request_bytes import RequestBytes

_RETRY_AFTER_S = 1.0


def share_of(max_calls: int) -> int:
    """The most calls of one tenant and of one gRPC connection, and the most health watches of one host: a quarter, so
    that none can use up all."""
    return max(8, max_calls // 4)


class _Shares:
    """How many calls each owner has; `what` names them in errors."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._owners: dict[asyncio.Task[Any], str] = {}
        self._held = Counter[str]()

    def add(self, task: asyncio.Task[Any], owner: str) -> None:
        """Raises Overloaded if the owner has its share."""
        held = self._held[owner]
        if held >= self._limit:
            raise Overloaded(self._what, held, f"< {self._limit}", _RETRY_AFTER_S)
        self._held[owner] += 1
        self._owners[task] = owner

    def owner(self, task: asyncio.Task[Any]) -> str | None:
        return self._owners.get(task)

    def remove(self, task: asyncio.Task[Any]) -> None:
        owner = self._owners.pop(task, None)
        if owner is not None:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]


class ActiveCalls(grpc.aio.ServerInterceptor):
    """Must be the last interceptor. A call counts from the arrival of its headers.

    Calls over HTTP are counted too, by `enter`.
    """

    def __init__(
        self,
        max_calls: int,
        tenant_of_call: Callable[[], str | None] = lambda: None,
        request_bytes: RequestBytes | None = None,
    ) -> None:
        """`tenant_of_call`: the proven tenant of the current task, if any. Without `request_bytes` these have no
        limit."""
        self._max_calls = max_calls
        self._tenant_of_call = tenant_of_call
        share = share_of(max_calls)
        self._tenants = _Shares("calls of the tenant", share)
        self._hosts = _Shares("health watches of the host", share)
        self._bytes = RequestBytes(sys.maxsize, sys.maxsize) if request_bytes is None else request_bytes
        self._running: set[asyncio.Task[Any]] = set()
        self._watches: set[asyncio.Task[Any]] = set()
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    @property
    def running(self) -> int:
        """The number of running calls. (Not `__len__`: gRPC ignores an interceptor that is falsy.)"""
        return len(self._running)

    @property
    def request_bytes(self) -> int:
        """The bytes of the requests of running calls, incomplete ones included."""
        return self._bytes.held

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        task, method = asyncio.current_task(), handler_call_details.method
        calls = self._watches if method.startswith(HEALTH_PREFIX) else self._running
        if handler is None or task is None or method == CHECK:
            return handler
        try:
            self._add(task, calls, self._tenant_of_call())
        except Overloaded as error:
            return error_handler(error)
        return handler

    def enter(self, tenant: str | None = None) -> None:
        """Count the current task as a call of a proven tenant, if any, until it ends: for calls over HTTP.

        Raises Overloaded, and ShuttingDown while the server drains.
        """
        task = asyncio.current_task()
        if self._is_closed:
            raise ShuttingDown("the service is shutting down and accepts no new call")
        if task is not None:
            self._add(task, self._running, tenant)

    def record_peer(self, peer: Callable[[], str]) -> None:
        """Count the current call, if it is a health watch, for the host of its peer (`ipv4:HOST:PORT`).

        Raises Overloaded if the host has its share.
        """
        task = asyncio.current_task()
        if task is not None and task in self._watches:
            self._hosts.add(task, peer().rpartition(":")[0])

    def hold(self, more: int) -> None:
        """Count `more` bytes of the current call, of its request or of a response that is already serialized, until the
        call ends.

        Raises Overloaded. Does nothing for a health check or watch, so that a full server still answers probes.
        """
        task = asyncio.current_task()
        if task is not None and task in self._running:
            self._bytes.add(task, self._tenants.owner(task), more)

    def close(self) -> None:
        """Refuse new calls in `enter`. gRPC refuses its own calls when it stops."""
        self._is_closed = True

    async def wait_until_idle(self, within_s: float) -> None:
        """Wait until no call runs, for at most `within_s` seconds."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return

    def cancel_all(self) -> None:
        """Cancel the calls that still run, health watches included. They end with `shutdown_error`.

        Call it repeatedly: a call that gRPC accepted before it stopped may start later.
        """
        fresh = (self._running | self._watches) - self._cancelled
        self._cancelled |= fresh
        for task in fresh:
            task.cancel()

    def shutdown_error(self) -> ShuttingDown | None:
        """The error for the caller of the current call, if `cancel_all` cancelled it."""
        return ShuttingDown("the service is shutting down") if asyncio.current_task() in self._cancelled else None

    def _add(self, task: asyncio.Task[Any], calls: set[asyncio.Task[Any]], tenant: str | None) -> None:
        if len(calls) >= self._max_calls:
            raise Overloaded("calls", len(calls), f"< {self._max_calls}", _RETRY_AFTER_S)
        if tenant is not None and calls is self._running:
            self._tenants.add(task, tenant)
        calls.add(task)
        task.add_done_callback(self._ended)
        self._update_idle()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tenants.remove(task)
        self._hosts.remove(task)
        self._bytes.remove(task)
        for calls in (self._running, self._watches, self._cancelled):
            calls.discard(task)
        self._update_idle()

    def _update_idle(self) -> None:
        if self._running:
            self._idle.clear()
        else:
            self._idle.set()
