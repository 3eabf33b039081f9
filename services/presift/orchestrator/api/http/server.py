"""The HTTP server. It runs in the gRPC server's event loop and drains with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from presift.core.errors import PresiftError
from presift.orchestrator.api.http.connections import HeaderTimeoutProtocol, bound_socket
from presift.rpc.security.binding import check_binding, is_loopback
from presift.rpc.security.certificates import TlsFiles, server_context

SETTING = "http_listen"
# Longer than clients keep an idle connection, so that they close it first and never send on a closed one.
_IDLE_S = 75
_TICK_S = 0.01
# Seconds to end in, once every connection is aborted.
_LAST_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """`listen` is HOST:PORT (port 0: any free one). `tls` and `insecure` as for the gRPC server; `knows_callers`:
    callers must authenticate."""

    listen: str
    tls: TlsFiles | None = None
    insecure: bool = False
    knows_callers: bool = False


class _Server(uvicorn.Server):
    """The gRPC server handles signals and drains both."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _LastResponses:
    """The application; once `are_last`, each response says `Connection: close`, and uvicorn closes after it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.are_last = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_close(message: Message) -> None:
            if self.are_last and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_with_close)


class HttpServer:
    """Serves `app` from `start` to `stop`."""

    def __init__(self, app: ASGIApp, options: HttpOptions) -> None:
        """Raises PresiftError for unusable certificates, or for an address that anyone could reach without a key."""
        check_binding(options.listen, options.knows_callers, options.insecure, SETTING)
        context = None if options.tls is None else server_context(options.tls)
        self._options = options
        self._responses = _LastResponses(app)
        config = uvicorn.Config(
            self._responses,
            http=HeaderTimeoutProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",  # the application logs its own errors, without their text
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            ssl_context_factory=None if context is None else lambda config, default: context,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Bind and listen. Returns HOST:PORT. Raises PresiftError if the address cannot be bound."""
        listen = self._options.listen
        if self._options.tls is None and not is_loopback(listen):
            log.warning("HTTP on %s is without TLS: requests and API keys are sent unencrypted", listen)
        listener = bound_socket(listen, SETTING)
        address = f"{listen.rpartition(':')[0]}:{listener.getsockname()[1]}"
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="serve HTTP")
        while not self._server.started:
            await asyncio.sleep(_TICK_S)
            if self._serving.done():
                self._serving.result()
                raise PresiftError(f"cannot serve HTTP on {listen}")
        return address

    def announce_stop(self) -> None:
        """Answer further requests with `Connection: close`."""
        self._responses.are_last = True

    async def stop_listening(self) -> None:
        """Accept no more connections, and close the idle ones. Requests that arrive before that are answered."""
        self._server.should_exit = True
        while self._serving is not None and not self._serving.done() and self._is_listening():
            await asyncio.sleep(_TICK_S)

    def _is_listening(self) -> bool:
        # uvicorn closes these and the idle connections without a pause between.
        return any(each.is_serving() for each in self._server.servers)

    async def stop(self, within_s: float) -> None:
        """Accept no more connections, and return when all are closed; after `within_s` they are aborted."""
        if self._serving is None:
            return
        self._server.should_exit = True
        await asyncio.wait((self._serving,), timeout=within_s)
        # A client that does not read would keep its connection open.
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        done, _ = await asyncio.wait((self._serving,), timeout=_LAST_S)
        if not done:
            self._serving.cancel()
            await asyncio.wait((self._serving,), timeout=_LAST_S)
