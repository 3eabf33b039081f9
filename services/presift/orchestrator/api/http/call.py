"""One HTTP call from its first header to its last byte: whose it is, what it counts as, how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from presift.core.errors import InternalError, PermissionDenied, PresiftError
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.grpc.requests import tenant_from_metadata
from presift.orchestrator.api.http.disconnect import CallerLeft, Presence
from presift.orchestrator.api.http.sse import Reply
from presift.orchestrator.api.http.tracing import served
from presift.orchestrator.domain.caller import Caller
from presift.rpc.server.active_calls import ActiveCalls
from presift.rpc.server.error_interceptor import without_text

# Seconds that a caller has to take what went wrong. He may read a byte now and then: his call would never end.
TELL_S = 5.0
# In the state of a request's scope (`connections.py`): what closes its connection at once.
ABORT = "presift.abort"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What an endpoint works with."""

    headers: Headers
    receive: Receive
    reply: Reply
    caller: Caller
    presence: Presence
    path: Mapping[str, Any]


Endpoint = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Calling:
    """How every call is taken. `doorkeeper` None lets anybody in; `calls` are counted with those of gRPC."""

    doorkeeper: Authenticator | None
    calls: ActiveCalls

    def take(self, headers: Headers) -> Caller:
        """In gRPC's order: strangers first, and nothing of theirs is read. Raises PresiftError."""
        if self.doorkeeper is None and "origin" in headers:
            # Nobody is asked for a key: a page that was opened on this machine must not speak for its owner, and one
            # whose name was made to lead here (DNS rebinding) needs no CORS for that.
            raise PermissionDenied("pages are not answered here, unless callers show keys")
        pairs = headers.items()
        caller = Caller(tenant_from_metadata(pairs)) if self.doorkeeper is None else self.doorkeeper.admit(pairs)
        self.calls.enter()
        return caller

    def told(self, error: BaseException, presence: Presence) -> PresiftError | None:
        """What to tell of `error`; None where nobody is there."""
        if presence.has_left or isinstance(error, CallerLeft):
            return None
        if isinstance(error, asyncio.CancelledError):
            return self.calls.shutdown_error()
        if isinstance(error, PresiftError):
            return error
        # The text of a foreign exception may quote the prompt: only its type and place are logged or sent.
        log.error("unexpected %s", type(error).__name__, exc_info=without_text(error))
        return InternalError(f"unexpected {type(error).__name__}; see the service's log")


@dataclass(frozen=True, slots=True)
class Handled:
    """An endpoint as ASGI; `route` names its span. Whatever ends a call is told to its caller; nothing is raised."""

    calling: Calling
    route: str
    endpoint: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send)
        presence = Presence(receive, lambda: reply.is_ending)
        headers = Headers(scope=scope)
        with served(scope["method"], self.route, headers, reply):
            try:
                caller = self.calling.take(headers)
                await self.endpoint(Call(headers, receive, reply, caller, presence, scope["path_params"]))
            except (Exception, asyncio.CancelledError) as error:
                told = self.calling.told(error, presence)
                if told is not None:
                    await _tell(reply, told, scope)


async def _tell(reply: Reply, error: PresiftError, scope: Scope) -> None:
    try:
        with suppress(asyncio.CancelledError):  # cut while it is told
            async with asyncio.timeout(TELL_S):
                await reply.refuse(error)
    except TimeoutError:
        scope.get("state", {}).get(ABORT, _nothing)()


def _nothing() -> None:
    """Another server than ours: it closes by itself what has no end."""
