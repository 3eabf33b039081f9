"""What server interceptors do with the handler of a method: replace its behavior, or refuse the call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc

from presift.core.errors import PresiftError

# As text, because grpc's generics exist only in the stubs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behavior = Callable[..., Any]
Deserializer = Callable[[bytes], Any]
Serializer = Callable[[Any], bytes]

# Methods of grpc.health.v1: open to every caller. Checks are not counted, watches apart from other calls.
HEALTH_PREFIX = "/grpc.health.v1.Health/"
CHECK = f"{HEALTH_PREFIX}Check"


def error_handler(error: PresiftError) -> Handler:
    """A handler that raises `error` for a method of any kind, and neither reads nor parses a message.

    ErrorInterceptor must come before the interceptor that returns it.
    """

    async def refuse(requests: Any, context: Context) -> AsyncIterator[bytes]:
        raise error
        yield b""

    return grpc.stream_stream_rpc_method_handler(refuse)


def with_behavior(
    handler: Any,
    change: Callable[[Behavior], Behavior],
    deserialize: Deserializer | None,
    serialize: Serializer | None = None,
) -> Handler:
    """`handler` with a changed behavior, another deserializer and, if given, another serializer, for a method of any
    kind."""
    kind = f"{_cardinality(handler.request_streaming)}_{_cardinality(handler.response_streaming)}"
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return cast("Handler", make(change(getattr(handler, kind)), deserialize, serialize or handler.response_serializer))


def with_request_stream(handler: Any, change: Callable[[Behavior], Behavior]) -> Handler:
    """`handler`, of a method with one request, as one whose changed behavior gets a stream of requests."""
    response = _cardinality(handler.response_streaming)
    make = getattr(grpc, f"stream_{response}_rpc_method_handler")
    behavior = change(getattr(handler, f"unary_{response}"))
    return cast("Handler", make(behavior, handler.request_deserializer, handler.response_serializer))


def _cardinality(is_streaming: bool) -> str:
    return "stream" if is_streaming else "unary"
