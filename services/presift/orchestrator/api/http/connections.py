"""Connections: sockets that notice a caller who is gone without a word, and a time in which requests must begin."""

from __future__ import annotations

import asyncio
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from presift.core.errors import PresiftError
from presift.orchestrator.api.http.call import ABORT

# As the gRPC door: pings after 30 s, and a peer that leaves three of them without an answer is gone.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
# What was written and is not taken: so long a caller may stand still with a full window.
_UNREAD_MS = 120_000
_LAST_PORT = 65_535


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose idle time runs until a request's headers are whole, and from a connection's beginning: bytes that
    trickle in do not prolong it (uvicorn's own begins with the first answer, and ends with the next byte)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()  # stops the clock where a request begins

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.LocalProtocolError:
            # What came behind an early answer is no HTTP, and uvicorn would answer it once more: asyncio would log a
            # stack trace for everybody who sends that.
            self.transport.abort()


def bound(listen: str, setting: str) -> socket.socket:
    """A socket at HOST:PORT, whose connections inherit its options. Raises PresiftError, naming the setting."""
    host, _, port = listen.rpartition(":")
    try:
        if int(port) > _LAST_PORT:  # the resolver would take it for another one
            raise OverflowError("there is no such port")
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise PresiftError(f"cannot listen on {listen} ({setting}): {error}") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        made.bind(place)
    except (OSError, OverflowError) as error:
        made.close()
        raise PresiftError(f"cannot listen on {listen} ({setting}): the address is in use or not ours") from error
    return made
