"""The fault proxy misbehaves as told, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .proxy import _PREFACE, CallCounter, FaultProxy


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """Before a server that sends back what it gets."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    proxy = FaultProxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await proxy.start()
    yield proxy
    await proxy.aclose()
    server.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


class Caller:
    """One connection through a proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, proxy: FaultProxy) -> Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def echo(self, data: bytes = b"hello") -> bytes:
        self._writer.write(data)
        return await asyncio.wait_for(self._reader.readexactly(len(data)), 5.0)

    async def is_silent(self) -> bool:
        """Whether a word gets no answer, and the connection no end."""
        self._writer.write(b"anybody?")
        try:
            await asyncio.wait_for(self._reader.read(1), 0.2)
        except TimeoutError:
            return True
        return False

    async def end(self) -> bytes:
        return await asyncio.wait_for(self._reader.read(), 5.0)


async def test_it_passes_everything_on(proxy: FaultProxy) -> None:
    caller = await Caller.of(proxy)
    data = bytes(range(256)) * 4096
    assert await caller.echo(data) == data and proxy.links == 1


async def test_it_passes_an_end_on(proxy: FaultProxy) -> None:
    caller = await Caller.of(proxy)
    await caller.echo()
    caller._writer.close()
    async with asyncio.timeout(5):
        while proxy.links:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", [{"delay_s": 0.1}, {"bytes_per_s": 50}])
async def test_slow(proxy: FaultProxy, fault: dict[str, float]) -> None:
    caller = await Caller.of(proxy)
    for name, value in fault.items():
        setattr(proxy, name, value)
    began = asyncio.get_running_loop().time()
    assert await caller.echo(b"0123456789") == b"0123456789"
    assert asyncio.get_running_loop().time() - began >= 0.19  # both ways
    proxy.behave()
    assert proxy.delay_s == 0.0 and proxy.bytes_per_s is None


async def test_what_is_held_arrives_afterwards(proxy: FaultProxy) -> None:
    caller = await Caller.of(proxy)
    proxy.hold()
    late = await Caller.of(proxy)
    assert await caller.is_silent() and await late.is_silent()
    proxy.behave()
    assert await asyncio.wait_for(caller._reader.readexactly(8), 5.0) == b"anybody?"


async def test_half_open_is_for_the_connections_of_that_moment(proxy: FaultProxy) -> None:
    caller = await Caller.of(proxy)
    await caller.echo()
    proxy.half_open()
    assert await caller.is_silent()
    assert await (await Caller.of(proxy)).echo() == b"hello"
    proxy.behave()
    assert await caller.is_silent()


async def test_cut_resets(proxy: FaultProxy) -> None:
    caller = await Caller.of(proxy)
    await caller.echo()
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await caller.end()
    assert await (await Caller.of(proxy)).echo() == b"hello"


async def test_garbage_is_of_the_same_length_and_something_else(proxy: FaultProxy) -> None:
    caller = await Caller.of(proxy)
    proxy.garbage = True
    spoilt = await caller.echo(b"0123456789")
    assert spoilt[:4] == b"\xff" * 4 and spoilt != b"0123456789"


async def test_nobody_behind_it_is_an_end(proxy: FaultProxy) -> None:
    proxy.upstream = "127.0.0.1:1"
    assert await (await Caller.of(proxy)).end() == b""


async def test_before_a_unix_socket(tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(_echo, tmp_path / "s")
    proxy = FaultProxy(f"unix:{tmp_path / 's'}")
    await proxy.start()
    caller = await Caller.of(proxy)
    assert await caller.echo() == b"hello"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await caller.end()
    await proxy.aclose()
    server.close()


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_calls_are_counted_whatever_the_chunks(step: int) -> None:
    def frame(kind: int, size: int, stream: int = 0) -> bytes:
        return size.to_bytes(3) + bytes([kind, 0, 0, 0, 0, stream]) + bytes(size)

    first = frame(1, 30, 1) + frame(0, 500, 1) + frame(0, 500, 1)
    health = frame(1, 9, 3) + frame(0, 5, 3) + frame(0, 0, 3)
    second = frame(1, 9, 5) + frame(0, 6, 5)
    sent = _PREFACE + frame(4, 12) + first + frame(6, 8) + health + second
    counter = CallCounter()
    for start in range(0, len(sent), step):
        counter.hear(sent[start : start + step])
    assert counter.calls == 2


async def test_calls_of_grpc_are_counted(proxy: FaultProxy) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from presift.rpc.server.server import GrpcServer, ServerOptions

    server = GrpcServer(ServerOptions("127.0.0.1:0"), [])
    proxy.upstream = f"127.0.0.1:{await server.start()}"
    async with grpc.aio.insecure_channel(proxy.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        check = health_pb2.HealthCheckRequest
        await asyncio.gather(*(health.Check(check(service="liveness")) for _ in range(7)), health.Check(check()))
        assert proxy.calls == 7
    await server.grpc.stop(0)


async def test_a_channel_leaves_a_silent_connection_and_connects_again(proxy: FaultProxy) -> None:
    """presift's channel over a half-open connection: UNAVAILABLE long before the deadline, then a new connection."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from presift.rpc.client.channel import open_channel
    from presift.rpc.server.server import GrpcServer, ServerOptions

    server, request = GrpcServer(ServerOptions("127.0.0.1:0"), []), health_pb2.HealthCheckRequest()
    proxy.upstream = f"127.0.0.1:{await server.start()}"
    channel = open_channel(proxy.address)
    health = health_pb2_grpc.HealthStub(channel)
    try:
        await health.Check(request)
        proxy.half_open()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await health.Check(request, timeout=60)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        try:
            await health.Check(request, timeout=60, wait_for_ready=True)
        except grpc.aio.AioRpcError as failure_too:  # gRPC was still closing the silent connection
            assert failure_too.code() is grpc.StatusCode.UNAVAILABLE
            await health.Check(request, timeout=60, wait_for_ready=True)
    finally:
        await channel.close()
        await server.grpc.stop(0)
