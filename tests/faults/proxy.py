"""A TCP proxy that misbehaves when told: slow, throttled, held, half-open, cut, garbage. It sits between two services.

It also counts HTTP/2 calls, so that a test can say how many reached a service without asking that service.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass, field

_CHUNK_BYTES, _PIECE_S = 65_536, 0.05
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEAD_BYTES, _DATA_FRAME = 9, 0
# The frame of a gRPC message without fields, such as that of a health check.
_EMPTY_MESSAGE_BYTES = 5
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER that ends a connection with RST instead of FIN


@dataclass(eq=False)
class CallCounter:
    """Counts the streams on which a client sends data (HTTP/2, RFC 9113 section 4.1): each is one call.

    Calls with an empty message do not count: they ask whether a service is there.
    """

    _streams: set[bytes] = field(default_factory=set)
    _buffer: bytearray = field(default_factory=bytearray)
    _skip_bytes: int = len(_PREFACE)

    def hear(self, data: bytes) -> None:
        """The next bytes of a connection, from its first on."""
        self._buffer += data
        while len(self._buffer) >= self._skip_bytes + _FRAME_HEAD_BYTES:
            del self._buffer[: self._skip_bytes]
            length = int.from_bytes(self._buffer[:3])
            self._skip_bytes = _FRAME_HEAD_BYTES + length
            if self._buffer[3] == _DATA_FRAME and length > _EMPTY_MESSAGE_BYTES:
                self._streams.add(bytes(self._buffer[5:9]))

    @property
    def calls(self) -> int:
        """Calls that were begun on this connection."""
        return len(self._streams)


@dataclass(eq=False)
class _Link:
    """One connection through the proxy: two halves. A dead one swallows what it gets and never ends by itself."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    counter: CallCounter = field(default_factory=CallCounter)
    is_dead: bool = False

    def close(self) -> None:
        for writer in self.writers:
            writer.close()

    def reset(self) -> None:
        for writer in self.writers:
            with contextlib.suppress(OSError):  # closed already; or a unix socket, which knows no RST
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class FaultProxy:
    """TCP before `upstream` (HOST:PORT or unix:PATH), which may change between connections. It listens at `host`, on
    a free port if `port` is 0.

    `delay_s` is what each chunk waits, `bytes_per_s` bounds a direction of a link, `garbage` replaces what passes.
    """

    def __init__(self, upstream: str, seed: int = 0, host: str = "127.0.0.1", port: int = 0) -> None:
        self.upstream = upstream
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.garbage = False
        self.host, self.port = host, port
        self._random = random.Random(seed)
        self._flows = asyncio.Event()
        self._flows.set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended_calls = 0
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def links(self) -> int:
        """Connections that pass through now."""
        return len(self._links)

    @property
    def calls(self) -> int:
        """Calls that were begun through this proxy, ever, without those with an empty message."""
        return self._ended_calls + sum(link.counter.calls for link in self._links)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Let go of the port and of every connection."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def behave(self) -> None:
        """End every fault that lasts; connections that are dead stay so."""
        self.delay_s, self.bytes_per_s, self.garbage = 0.0, None, False
        self._flows.set()

    def hold(self) -> None:
        """From now on nothing passes and nothing is lost, until `behave`; new connections are accepted."""
        self._flows.clear()

    def half_open(self) -> None:
        """The connections of now are dead: open for ever, and nothing comes through. New ones work."""
        for link in self._links:
            link.is_dead = True

    def cut(self) -> None:
        """Reset the connections of now. New ones work."""
        for link in tuple(self._links):
            link.reset()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            writer.close()
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await self._open_upstream()
        link = _Link((writer, back_writer))
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._pump(link, reader, back_writer, link.counter)),
            asyncio.create_task(self._pump(link, back_reader, writer, None)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if link.is_dead:  # one side gave up; the other is to learn nothing of it
                await asyncio.wait(pumps)
        finally:
            link.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._links.discard(link)
            self._ended_calls += link.counter.calls

    async def _open_upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.upstream.startswith("unix:"):
            return await asyncio.open_unix_connection(self.upstream.removeprefix("unix:"))
        host, _, port = self.upstream.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: CallCounter | None
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._flows.wait()
            if counter is not None:
                counter.hear(data)
            await asyncio.sleep(self.delay_s)
            await self._pass_on(link, self._spoilt(data) if self.garbage else data, writer)

    async def _pass_on(self, link: _Link, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data and not link.is_dead:
            # In small pieces while it is throttled: the end of that must not wait for a big one.
            size = max(1, int(self.bytes_per_s * _PIECE_S)) if self.bytes_per_s else len(data)
            await asyncio.sleep(_PIECE_S if self.bytes_per_s else 0.0)
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]

    def _spoilt(self, data: bytes) -> bytes:
        # It begins with a length that no HTTP/2 peer takes: noise that breaks the framing, not a forged answer.
        return b"\xff" * min(4, len(data)) + self._random.randbytes(max(0, len(data) - 4))
