"""The door over gRPC: every call but those for health has a known caller, or is refused before its message is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from presift.core.errors import PresiftError
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.domain.caller import set_current_caller
from presift.rpc.server.refusal import HEALTH_PREFIX, refusing

if TYPE_CHECKING:  # grpc generics exist in the stubs alone
    Handler = grpc.RpcMethodHandler[Any, Any]


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """To stand behind ErrorInterceptor, which tells the refusals."""

    def __init__(self, doorkeeper: Authenticator) -> None:
        self._doorkeeper = doorkeeper

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        details: Any = handler_call_details
        if not details.method.startswith(HEALTH_PREFIX):
            try:
                # Each call has a task, and so a context, of its own, and is handled in it.
                set_current_caller(self._doorkeeper.admit(details.invocation_metadata))
            except PresiftError as error:
                return refusing(error)
        return await continuation(handler_call_details)
