"""Streams that a shutdown cancels while gRPC writes a response."""

import asyncio

import grpc
import pytest

from presift.core.errors import ShuttingDown
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.v1 import target_pb2, target_pb2_grpc


class Endless(target_pb2_grpc.TargetServiceServicer):
    """Yields all the time, and counts."""

    def __init__(self):
        self.begun = self.closed = 0

    async def Generate(self, request, context):
        self.begun += 1
        try:
            while True:
                yield target_pb2.TargetServiceGenerateResponse()
        finally:
            self.closed += 1


@pytest.fixture
async def servicer():
    return Endless()


@pytest.fixture
async def server(servicer):
    server = GrpcServer(ServerOptions("127.0.0.1:0", drain_s=0.05), [])
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    yield server
    await server.grpc.stop(0)


async def read_to_the_end(channel):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for _ in target_pb2_grpc.TargetServiceStub(channel).Generate(target_pb2.TargetServiceGenerateRequest()):
            pass
    return failure.value


async def test_every_stream_gets_the_error_of_the_shutdown(server, servicer):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        calls = [asyncio.create_task(read_to_the_end(channel)) for _ in range(3)]
        async with asyncio.timeout(20):
            while servicer.begun < len(calls):
                await asyncio.sleep(0.002)
        await server.drain()
        failures = await asyncio.gather(*calls)
        async with asyncio.timeout(20):
            while servicer.closed < len(calls):
                await asyncio.sleep(0.002)
    assert [(each.code(), type(error_of(each))) for each in failures] == [
        (grpc.StatusCode.UNAVAILABLE, ShuttingDown)
    ] * len(calls)
