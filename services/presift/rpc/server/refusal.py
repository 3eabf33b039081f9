"""How server interceptors refuse a call: with a handler that raises, instead of the method's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from presift.core.errors import PresiftError

if TYPE_CHECKING:  # grpc generics exist in the stubs alone
    Handler = grpc.RpcMethodHandler[Any, Any]

# Methods of grpc.health.v1: open to every caller, and counted apart from other calls.
HEALTH_PREFIX = "/grpc.health.v1.Health/"


def error_handler(error: PresiftError) -> Handler:
    """A handler that raises `error` for a method of any kind, and neither reads nor parses a message.

    ErrorInterceptor must come before the interceptor that returns it.
    """

    async def refuse(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        raise error
        yield b""

    return grpc.stream_stream_rpc_method_handler(refuse)
