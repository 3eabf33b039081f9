"""Authentication over gRPC: every call except health has a known caller, or is rejected before its message is read."""

from __future__ import annotations

from typing import Any

import grpc

from presift.core.errors import PresiftError
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.domain.caller import set_current_caller
from presift.rpc.server.handlers import HEALTH_PREFIX, Continuation, Handler, error_handler


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Place it after ErrorInterceptor, which sends the errors."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        details: Any = handler_call_details
        if not details.method.startswith(HEALTH_PREFIX):
            try:
                # Each call has its own task, and so its own context.
                set_current_caller(self._authenticator.admit(details.invocation_metadata))
            except PresiftError as error:
                return error_handler(error)
        return await continuation(handler_call_details)
