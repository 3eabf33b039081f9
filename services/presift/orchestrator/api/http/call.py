"""One HTTP call: authenticated, counted and traced; every error is sent to its client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from presift.core.errors import InternalError, PermissionDenied, PresiftError
from presift.orchestrator.admission.answer_bytes import AnswerBytes
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.claimed_tenant import tenant_from_metadata
from presift.orchestrator.api.http.disconnect import Client
from presift.orchestrator.api.http.errors import ClientDisconnected
from presift.orchestrator.api.http.hosts import AllowedHosts
from presift.orchestrator.api.http.reply import Reply, do_nothing, no_buffers
from presift.orchestrator.api.http.wire_format import COMPLETIONS, WireFormat
from presift.orchestrator.domain.caller import Caller
from presift.rpc.security.service_token import AUTHORIZATION
from presift.rpc.server.active_calls import ActiveCalls
from presift.rpc.server.error_interceptor import without_text
from presift.telemetry.metrics import count
from presift.telemetry.propagation import TraceParentPropagator
from presift.telemetry.request_id import request_id
from presift.telemetry.tracing import tracer

# Seconds that a client has to read an error. One that reads a byte now and then would keep its call forever.
SEND_ERROR_S = 5.0
API_KEY = "x-api-key"
# In the state of a request's scope (`connections.py`): the function that closes its connection at once.
ABORT = "presift.abort"
# Beside it: the coroutine function that waits until the client has read all but what buffers of fixed sizes hold.
DRAINED = "presift.drained"
# The route of all unknown paths: the metrics must not have the caller's own.
UNKNOWN_ROUTE = "other"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What an endpoint works with. `hold` counts bytes of the body as they arrive; it raises Overloaded."""

    headers: Headers
    receive: Receive
    reply: Reply
    caller: Caller
    client: Client
    path: Mapping[str, Any]
    hold: Callable[[int], None]


Endpoint = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call. Without an `authenticator` everyone may, also pages of `origins` (`*`: any), by a name of `hosts`
    (None: by any). `calls` counts gRPC's calls too."""

    authenticator: Authenticator | None
    calls: ActiveCalls
    origins: frozenset[str] = frozenset()
    hosts: AllowedHosts | None = None

    def admit(self, headers: Headers) -> Caller:
        """Authenticate before anything of the request is read, as gRPC does. Raises PresiftError."""
        if self.authenticator is None:
            self._check_page(headers)
        pairs = _credentials(headers)
        caller = Caller(tenant_from_metadata(pairs)) if self.authenticator is None else self.authenticator.admit(pairs)
        self.calls.enter(caller.proven_tenant)
        return caller

    def _check_page(self, headers: Headers) -> None:
        """Without keys a page that was opened on this machine could act for its owner. Raises PermissionDenied."""
        if "*" not in self.origins and not self.origins.issuperset(headers.getlist("origin")):
            raise PermissionDenied(
                "requests from web pages need an API key or a token, unless the page's origin is in http_origins"
            )
        if self.hosts is not None:
            self.hosts.check(headers)


def _credentials(headers: Headers) -> list[tuple[str, str]]:
    """The headers; a key in `x-api-key`, where Anthropic's clients send it, counts as a bearer's."""
    pairs = headers.items()
    if AUTHORIZATION in headers:
        return pairs
    return pairs + [(AUTHORIZATION, f"Bearer {value}") for name, value in pairs if name == API_KEY]


@dataclass(frozen=True, slots=True)
class CallHandler:
    """An endpoint as an ASGI application; `route` names its span. Every error is sent to the client, none is raised.
    `keepalive_s` as in Reply. A call ends when its client has read the answer; `answers` counts it meanwhile."""

    access: Access
    route: str
    endpoint: Endpoint
    answers: AnswerBytes
    keepalive_s: float | None = None
    format: WireFormat = COMPLETIONS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        drained, abort = state.get(DRAINED, no_buffers), state.get(ABORT, do_nothing)
        reply = Reply(send, self.keepalive_s, drained, abort, self.format)
        client = Client(receive, lambda: reply.is_ending)
        headers = Headers(scope=scope)
        with _request_span(scope["method"], self.route, headers, reply):
            try:
                caller = self.access.admit(headers)
                path, hold = scope["path_params"], self.access.calls.hold
                with self.answers.call(caller.tenant, reply.drop) as reply.waiting:
                    await self.endpoint(Call(headers, receive, reply, caller, client, path, hold))
                    await reply.finish()
            except (Exception, asyncio.CancelledError) as error:
                to_send = self._error_to_send(error, client)
                if to_send is not None:
                    await _send_error(reply, to_send)

    def _error_to_send(self, error: BaseException, client: Client) -> PresiftError | None:
        """None if the client has disconnected."""
        if client.has_disconnected or isinstance(error, ClientDisconnected):
            return None
        if isinstance(error, asyncio.CancelledError):
            return self.access.calls.shutdown_error()
        if isinstance(error, PresiftError):
            return error
        # The text of an unexpected exception may quote the prompt: only its type and place are logged or sent.
        log.error("unexpected %s", type(error).__name__, exc_info=without_text(error))
        return InternalError(f"unexpected {type(error).__name__}; see the service's log")


async def _send_error(reply: Reply, error: PresiftError) -> None:
    try:
        with suppress(asyncio.CancelledError):  # cancelled while it was sent
            async with asyncio.timeout(SEND_ERROR_S):
                await reply.send_error(error)
    except TimeoutError:
        reply.abort()


@contextmanager
def _request_span(method: str, route: str, headers: Headers, reply: Reply) -> Iterator[None]:
    """The span of one call, in the caller's trace. Paths, queries and headers are the caller's: none is recorded but a
    well-formed `x-request-id`."""
    with tracer().start_as_current_span(
        f"{method} {route}",
        context=TraceParentPropagator().extract(dict(headers)),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method, "http.route": route, "presift.request_id": request_id.get()},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield
        span.set_attribute("http.response.status_code", reply.status)
        if reply.error:
            span.set_attribute("error.type", reply.error)
        # A stream that failed keeps the status that it began with.
        if reply.status >= 500 or (reply.error and reply.status < 400):
            span.set_status(trace.StatusCode.ERROR)
    count_response(route, reply.status)


def count_response(route: str, status: int) -> None:
    """Count a response. Status 0: the client disconnected before one was sent."""
    count("presift.http.replies", http_route=route, status=str(status or "none"))
