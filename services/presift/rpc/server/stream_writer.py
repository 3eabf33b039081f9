"""Writes the responses of streaming methods, so that a call that is cancelled in the middle of a write ends in order.

gRPC's own loop over the responses raises the cancellation outside of the method: the caller of a server that shuts down
would wait until gRPC ends the call, and get no error of presift.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import aclosing
from typing import Any

import grpc

from presift.rpc.server.active_calls import ActiveCalls
from presift.rpc.server.error_interceptor import abort_if_shutting_down
from presift.rpc.server.handlers import Behavior, Context, Continuation, Handler, with_behavior


class StreamWriter(grpc.aio.ServerInterceptor):
    """Only RequestReader may stand before it: others could no longer iterate over the responses."""

    def __init__(self, calls: ActiveCalls) -> None:
        self._calls = calls

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        changed: Any = handler
        if handler is None or not changed.response_streaming:
            return handler
        return with_behavior(handler, self._writing, changed.request_deserializer)

    def _writing(self, behavior: Behavior) -> Behavior:
        async def write_all(request: Any, context: Context) -> None:
            responses = behavior(request, context)
            if inspect.isawaitable(responses):  # a method that writes to the context itself
                await responses
                return
            try:
                async with aclosing(responses) as stream:
                    async for response in stream:
                        await context.write(response)
            except asyncio.CancelledError:
                await abort_if_shutting_down(self._calls, context)
                raise

        return write_all
