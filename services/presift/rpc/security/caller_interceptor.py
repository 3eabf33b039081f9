"""Restricts the callers of a draft or a target to presift's own services. Health checks stay open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, cast

import grpc

from presift.core.errors import PermissionDenied, Unauthenticated
from presift.rpc.security.service_token import Tokens, bearer_token, is_one_of
from presift.rpc.server.refusal import HEALTH_PREFIX, error_handler
from presift.telemetry.metrics import count

if TYPE_CHECKING:  # grpc generics exist in the stubs alone
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]


class CallerInterceptor(grpc.aio.ServerInterceptor):
    """Requires a token (unless `tokens` is None), then a certificate with one of the `allowed` names (if any).

    A name is one of the certificate's subject alternative names or, if it has none, its common name.
    ErrorInterceptor must stand before this interceptor: it sends the refusals.
    """

    def __init__(self, tokens: Tokens | None = None, allowed: Collection[str] = ()) -> None:
        self._tokens = tokens
        self._allowed = frozenset(name.encode() for name in allowed)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        details: Any = handler_call_details
        if details.method.startswith(HEALTH_PREFIX):
            return await continuation(handler_call_details)
        if self._tokens is not None and not self._is_token(bearer_token(details.invocation_metadata)):
            count("presift.callers.refused", why="token")
            return error_handler(Unauthenticated("missing or unknown service token"))
        handler = await continuation(handler_call_details)
        return handler if handler is None or not self._allowed else self._named(handler)

    def _is_token(self, token: str | None) -> bool:
        return token is not None and self._tokens is not None and is_one_of(token, self._tokens.current())

    def _named(self, handler: Handler) -> Handler:
        """`handler` with a check of the caller's name: only the call's context has the certificate."""
        known: Any = handler

        def checked(behavior: Callable[..., Any]) -> Callable[..., Any]:
            def check_and_call(request: Any, context: Context) -> Any:
                self._check_name(context)
                return behavior(request, context)

            return check_and_call

        kind = f"{_cardinality(known.request_streaming)}_{_cardinality(known.response_streaming)}"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behavior = checked(getattr(known, kind))
        return cast("Handler", make(behavior, known.request_deserializer, known.response_serializer))

    def _check_name(self, context: Context) -> None:
        if not self._allowed.intersection(context.peer_identities() or ()):
            count("presift.callers.refused", why="name")
            raise PermissionDenied("the caller's certificate has none of the names in allowed_callers")


def _cardinality(is_streaming: bool) -> str:
    return "stream" if is_streaming else "unary"
