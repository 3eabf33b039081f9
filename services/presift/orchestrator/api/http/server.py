"""The HTTP server beside the gRPC one, in the same event loop: it binds, serves and drains with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from presift.core.errors import PresiftError
from presift.orchestrator.api.http.connections import PatientProtocol, bound
from presift.rpc.limits import MAX_METADATA_BYTES
from presift.rpc.security.binding import check_binding, is_loopback
from presift.rpc.security.certificates import TlsFiles, server_context

SETTING = "http_listen"
# Longer than clients keep a connection that they do not use: who closes first must not be a matter of luck.
_IDLE_S = 75
_TICK_S = 0.01
# Once every connection is aborted, what is left ends at once.
_LAST_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """`listen` is HOST:PORT (port 0: any free one). `tls`, `insecure` as those of the gRPC server; `knows_callers`:
    callers must show who they are."""

    listen: str
    tls: TlsFiles | None = None
    insecure: bool = False
    knows_callers: bool = False


class _Server(uvicorn.Server):
    """Signals are the gRPC server's: it drains both."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves `app` from `start` to `stop`."""

    def __init__(self, app: ASGIApp, options: HttpOptions) -> None:
        """Raises PresiftError for certificates that cannot be used, or an address where anybody could call."""
        check_binding(options.listen, options.knows_callers, options.insecure, SETTING)
        context = None if options.tls is None else server_context(options.tls)
        self._options = options
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",  # the application tells its own errors, without their text
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            h11_max_incomplete_event_size=MAX_METADATA_BYTES,
            ssl_context_factory=None if context is None else lambda config, default: context,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Bind and listen. Returns HOST:PORT. Raises PresiftError if the address cannot be bound."""
        listen = self._options.listen
        if self._options.tls is None and not is_loopback(listen):
            log.warning("HTTP on %s is without TLS: what is said, keys too, can be read on the way", listen)
        made = bound(listen, SETTING)
        address = f"{listen.rpartition(':')[0]}:{made.getsockname()[1]}"
        self._serving = asyncio.create_task(self._server.serve(sockets=[made]), name="serve HTTP")
        while not self._server.started:
            await asyncio.sleep(_TICK_S)
            if self._serving.done():
                self._serving.result()
                raise PresiftError(f"cannot serve HTTP on {listen}")
        return address

    async def stop(self, within_s: float) -> None:
        """Take no connection from now on, and return when none is left, after `within_s` at the latest."""
        if self._serving is None:
            return
        self._server.should_exit = True
        await asyncio.wait((self._serving,), timeout=within_s)
        # Who does not read is not heard of otherwise.
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        done, _ = await asyncio.wait((self._serving,), timeout=_LAST_S)
        if not done:
            self._serving.cancel()
            await asyncio.wait((self._serving,), timeout=_LAST_S)
