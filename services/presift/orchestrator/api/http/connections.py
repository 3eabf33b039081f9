"""Connections: sockets that detect dead clients, a time limit for a request's headers, one end of each request."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from presift.core.errors import PresiftError
from presift.orchestrator.api.http.call import ABORT, DRAINED
from presift.rpc.limits import MAX_METADATA_BYTES

# As for gRPC: pings after 30 s; a client that misses three of them is disconnected.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
# How long written data may stay unacknowledged: a client may keep a full window for this long.
_UNREAD_MS = 120_000
_LAST_PORT = 65_535


class _StrictConnection(h11.Connection):
    """Refuses a request with Content-Length and Transfer-Encoding (400), and one of HTTP/1.0 with the latter.

    h11 ignores the length. A proxy in front that follows it would take the rest of the body for another request, or the
    other way round (request smuggling; RFC 9112, sections 6.1 and 6.3).
    """

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("two ends of a request")
        return event


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 whose idle time runs from a connection's beginning and until a request's headers are complete.

    uvicorn's own idle time begins with the first response and ends with the next byte, so slow headers would keep a
    connection forever.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _StrictConnection(h11.SERVER, MAX_METADATA_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort, DRAINED: self.flow.drain}
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()  # stops the timer when a request begins

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.LocalProtocolError:
            # Bytes after an early response were not HTTP. uvicorn would send another response, and asyncio would log a
            # stack trace for every client that does this.
            self.transport.abort()


def bound_socket(listen: str, setting: str) -> socket.socket:
    """A socket at HOST:PORT, whose connections inherit its options. Raises PresiftError, naming the setting."""
    host, _, port = listen.rpartition(":")
    try:
        if int(port) > _LAST_PORT:  # the resolver would take it modulo 65,536
            raise OverflowError("there is no such port")
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise PresiftError(f"cannot listen on {listen} ({setting}): {error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            bound.setsockopt(socket.IPPROTO_TCP, option, value)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        message = "the address is in use or does not belong to this machine"
        raise PresiftError(f"cannot listen on {listen} ({setting}): {message}") from error
    return bound
