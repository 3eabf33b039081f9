"""Health watches: each learns of every change, whoever else watches."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.rpc.server.server import GrpcServer, ServerOptions

NAME = "presift.v1.TargetService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def server():
    server = GrpcServer(ServerOptions("127.0.0.1:0"), [NAME])
    server.address = f"127.0.0.1:{await server.start()}"
    yield server
    await server.grpc.stop(0)


async def test_a_watch_that_ends_silences_no_other(server):
    """grpc_health's own forgets all watches of a name with the first that ends: a target that has loaded its model
    would stay unused by the others."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        ends, stays = (watch(health_pb2.HealthCheckRequest(service=NAME)) for _ in range(2))
        assert [(await each.read()).status for each in (ends, stays)] == [NOT_SERVING] * 2
        ends.cancel()
        async with asyncio.timeout(10):
            while len(server.calls._watches) > 1:
                await asyncio.sleep(0.002)
            await server.set_serving(True)
            assert (await stays.read()).status == SERVING
            late = watch(health_pb2.HealthCheckRequest(service=NAME))
            assert (await late.read()).status == SERVING
            await server.set_serving(False)
            assert [(await each.read()).status for each in (stays, late)] == [NOT_SERVING] * 2


async def test_nothing_is_kept_of_names_that_nobody_watches(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        for number in range(5):
            call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=f"name {number}"))
            assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            call.cancel()
        async with asyncio.timeout(10):
            while server.calls._watches:
                await asyncio.sleep(0.002)
    assert not server._health._server_watchers and not server._health._watches


async def test_a_watch_that_begins_during_a_change_reads_the_new_status(server):
    async with grpc.aio.insecure_channel(server.address) as channel, server._health._server_watchers[NAME]:
        changing = asyncio.create_task(server.set_serving(True))
        await asyncio.sleep(0.01)
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=NAME))).status == SERVING
        assert not changing.done()
    await changing
