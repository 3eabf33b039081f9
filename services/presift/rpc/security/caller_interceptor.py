"""Restricts the callers of a draft or a target to presift's own services. Health checks stay open."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import grpc

from presift.core.errors import PermissionDenied, Unauthenticated
from presift.rpc.security.service_token import Tokens, bearer_token, is_one_of
from presift.rpc.server.handlers import (
    HEALTH_PREFIX,
    Behavior,
    Context,
    Continuation,
    Handler,
    error_handler,
    with_behavior,
)
from presift.telemetry.metrics import count


class CallerInterceptor(grpc.aio.ServerInterceptor):
    """Requires a token (unless `tokens` is None), then a certificate with one of the `allowed` names (if any).

    A name is one of the certificate's subject alternative names or, if it has none, its common name.
    ErrorInterceptor must stand before this interceptor: it sends the refusals.
    """

    def __init__(self, tokens: Tokens | None = None, allowed: Collection[str] = ()) -> None:
        self._tokens = tokens
        self._allowed = frozenset(name.encode() for name in allowed)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        details: Any = handler_call_details
        if details.method.startswith(HEALTH_PREFIX):
            return await continuation(handler_call_details)
        if self._tokens is not None and not self._is_token(bearer_token(details.invocation_metadata)):
            count("presift.callers.refused", why="token")
            return error_handler(Unauthenticated("missing or unknown service token"))
        handler: Any = await continuation(handler_call_details)
        if handler is None or not self._allowed:
            return cast("Handler | None", handler)
        return with_behavior(handler, self._checked, handler.request_deserializer)

    def _is_token(self, token: str | None) -> bool:
        return token is not None and self._tokens is not None and is_one_of(token, self._tokens.current())

    def _checked(self, behavior: Behavior) -> Behavior:
        """`behavior` after a check of the caller's name: only the call's context has the certificate."""

        def check_and_call(request: Any, context: Context) -> Any:
            self._check_name(context)
            return behavior(request, context)

        return check_and_call

    def _check_name(self, context: Context) -> None:
        if not self._allowed.intersection(context.peer_identities() or ()):
            count("presift.callers.refused", why="name")
            raise PermissionDenied("the caller's certificate has none of the names in allowed_callers")
