"""Reads the request of a call within a time limit: a call whose message never arrives must not count for ever."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import grpc

from presift.core.errors import InvalidRequest, PresiftError
from presift.rpc.server.active_calls import ActiveCalls
from presift.rpc.server.error_interceptor import abort_if_shutting_down, abort_with
from presift.rpc.server.handlers import Behavior, Context, Continuation, Handler, with_request_stream
from presift.rpc.server.memory_guard import MemoryGuard

# Seconds from the headers of a call to the end of its message.
MESSAGE_S = 30.0


class RequestReader(grpc.aio.ServerInterceptor):
    """Must be the first interceptor. gRPC itself waits for a message without limit, and sends no status if it is
    cancelled meanwhile. So every method gets a stream of requests, of which this reads one."""

    def __init__(self, calls: ActiveCalls, guard: MemoryGuard) -> None:
        self._calls = calls
        self._guard = guard

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        changed: Any = handler
        if handler is None or changed.request_streaming:
            return handler
        return with_request_stream(handler, self._reading)

    def _reading(self, behavior: Behavior) -> Behavior:
        async def read_and_call(requests: Any, context: Context) -> Any:
            try:
                self._calls.record_peer(context.peer)
                async with self._guard.receiving(MESSAGE_S):
                    request = await context.read()
                if request is grpc.aio.EOF:
                    raise InvalidRequest("request", "missing", "one message")
            except PresiftError as error:
                await abort_with(error, context)
            except asyncio.CancelledError:
                await abort_if_shutting_down(self._calls, context)
                raise
            answer = behavior(request, context)
            return await answer if inspect.isawaitable(answer) else answer

        return read_and_call
