"""A Redis that lies: it speaks the protocol well enough, takes what it is given, and answers something else."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

Lie = Callable[["Liar", list[bytes]], bytes]


class Liar:
    """Listens on 127.0.0.1. `lie` makes the reply to a look-up; claims of leases are granted, writes are taken."""

    def __init__(self, lie: Lie) -> None:
        self.asked = 0
        self.values: dict[bytes, bytes] = {}
        self.random = random.Random(7)
        self.lie = lie
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Its HOST:PORT."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                writer.write(self._reply(await _command(reader)))
                await writer.drain()
        writer.close()
        self._tasks.discard(task)

    def _reply(self, command: list[bytes]) -> bytes:
        name = command[0].upper()
        if name == b"GETRANGE":
            self.asked += 1
            return self.lie(self, command)
        if name == b"SET":
            self.values[command[1]] = command[2]
        return b":1\r\n" if name in (b"EVAL", b"DEL") else b"+OK\r\n"


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    count = int((await reader.readuntil(b"\r\n"))[1:])
    words = []
    for _ in range(count):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


def bulk(value: bytes) -> bytes:
    """A value as Redis sends it."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def _of_another_key(liar: Liar, command: list[bytes]) -> bytes:
    return bulk(next((value for key, value in liar.values.items() if key != command[1]), b""))


def _own_but_damaged(liar: Liar, command: list[bytes]) -> bytes:
    value = bytearray(liar.values.get(command[1], b""))
    if value:
        value[liar.random.randrange(len(value))] ^= 1 << liar.random.randrange(8)
    return bulk(bytes(value))


def _noise(liar: Liar, command: list[bytes]) -> bytes:
    return bulk(liar.random.randbytes(300))


def _of_another_type(liar: Liar, command: list[bytes]) -> bytes:
    return liar.random.choice([b":7\r\n", b"*2\r\n:1\r\n:2\r\n", b"-ERR no\r\n", b"+fine\r\n", b"$-1\r\n", b"*-1\r\n"])


def _no_protocol(liar: Liar, command: list[bytes]) -> bytes:
    return liar.random.choice([b"\xff" * 40, b"$999999999\r\nshort", b"HTTP/1.1 200 OK\r\n\r\n", b"$x\r\n"])


LIES: dict[str, Lie] = {
    "the value of another key": _of_another_key,
    "a value with one bit flipped": _own_but_damaged,
    "noise": _noise,
    "another type": _of_another_type,
    "no protocol": _no_protocol,
}
