"""A server as every service runs it: bound, healthy, reflecting, drained."""

import asyncio
import os
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from presift.core.errors import PresiftError
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import target_pb2, target_pb2_grpc

NAME = "presift.v1.TargetService"
PART, OTHER_PART = f"{NAME}/spec_kv", f"{NAME}/full"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Slow(target_pb2_grpc.TargetServiceServicer):
    """Two messages, the second when `gate` opens."""

    def __init__(self):
        self.gate = asyncio.Event()

    async def Generate(self, request, context):
        for token_id in (1, 2):
            yield target_pb2.TargetServiceGenerateResponse(delta=target_pb2.TokenDelta(token_ids=[token_id]))
            await self.gate.wait()


class Stack:
    async def start(self, drain_s=10.0, **options):
        self.servicer = Slow()
        self.server = GrpcServer(ServerOptions("127.0.0.1:0", drain_s=drain_s, **options), [NAME], [PART, OTHER_PART])
        target_pb2_grpc.add_TargetServiceServicer_to_server(self.servicer, self.server.grpc)
        self.port = await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.target = target_pb2_grpc.TargetServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        return self

    async def status(self, service=""):
        return (await self.health.Check(health_pb2.HealthCheckRequest(service=service))).status

    async def running(self):
        call = self.target.Generate(target_pb2.TargetServiceGenerateRequest())
        assert (await call.read()).delta.token_ids == [1]
        return call


@pytest.fixture
async def stack():
    stack = await Stack().start()
    yield stack
    stack.servicer.gate.set()
    await stack.channel.close()
    await stack.server.grpc.stop(0)


async def test_a_port_in_use_is_an_error(stack):
    second = GrpcServer(ServerOptions(f"127.0.0.1:{stack.port}"), [])
    with pytest.raises(PresiftError, match=f"127.0.0.1:{stack.port}.*in use"):
        await second.start()


async def test_health_flips(stack):
    assert await stack.status() == await stack.status(NAME) == NOT_SERVING
    await stack.server.set_serving(True)
    assert await stack.status() == await stack.status(NAME) == SERVING
    await stack.server.set_serving(False)
    assert await stack.status() == NOT_SERVING


async def test_a_server_that_does_not_serve_is_still_alive(stack):
    assert [await stack.status(), await stack.status("liveness")] == [NOT_SERVING, SERVING]
    await stack.server.set_serving(True)
    await stack.server.set_serving(False)
    assert [await stack.status(), await stack.status("liveness")] == [NOT_SERVING, SERVING]


async def test_a_part_that_does_not_serve_leaves_the_rest_serving(stack):
    names = ("", NAME, PART, OTHER_PART)
    assert {await stack.status(name) for name in names} == {NOT_SERVING}
    await stack.server.set_serving(True, [PART])
    assert [await stack.status(name) for name in names] == [SERVING, SERVING, NOT_SERVING, SERVING]
    await stack.server.set_serving(False, [PART])
    assert {await stack.status(name) for name in names} == {NOT_SERVING}
    await stack.server.set_serving(True)
    assert {await stack.status(name) for name in names} == {SERVING}


async def test_parts_are_no_services_of_their_own(stack):
    stub = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    named = {service.name for service in (await call.read()).list_services_response.service}
    assert not named & {PART, OTHER_PART}


async def test_health_of_an_unknown_service(stack):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stack.status("no.such.Service")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched(stack):
    call = stack.health.Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert (await call.read()).status == NOT_SERVING
    await stack.server.set_serving(True)
    assert (await call.read()).status == SERVING
    call.cancel()


async def test_reflection_names_the_services(stack):
    stub = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    named = {service.name for service in (await call.read()).list_services_response.service}
    assert {NAME, "grpc.health.v1.Health"} <= named


async def test_drain_lets_a_running_stream_finish(stack):
    await stack.server.set_serving(True)
    call = await stack.running()
    draining = asyncio.create_task(stack.server.drain())
    stack.servicer.gate.set()
    assert (await call.read()).delta.token_ids == [2]
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    await draining


async def test_drain_refuses_new_calls(stack):
    call = await stack.running()
    draining = asyncio.create_task(stack.server.drain())
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", stack.port)
            except ConnectionError:  # refused, or reset where the last one was in the queue
                break
            writer.close()
            await asyncio.sleep(0.002)
    stack.servicer.gate.set()
    assert (await call.read()).delta.token_ids == [2] and await call.read() is grpc.aio.EOF
    await draining


async def test_drain_ends(stack):
    impatient = await Stack().start(drain_s=0.05)
    call = await impatient.running()
    await impatient.server.drain()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call.read()
        raise AssertionError("the stream went on")
    await impatient.channel.close()


async def test_a_lame_duck_is_not_serving_and_answers():
    lame = await Stack().start(lame_duck_s=0.5)
    await lame.server.set_serving(True)
    draining = asyncio.create_task(lame.server.drain())
    while await lame.status() != NOT_SERVING:
        await asyncio.sleep(0.002)
    await lame.server.set_serving(True)  # by a service that does not know of the shutdown
    lame.servicer.gate.set()
    assert [each.delta.token_ids async for each in lame.target.Generate(target_pb2.TargetServiceGenerateRequest())]
    assert not draining.done() and not lame.server.is_serving and await lame.status() == NOT_SERVING
    await draining
    await lame.channel.close()


async def test_a_service_that_was_not_serving_drains_at_once():
    """For example one that fails at its start: nobody calls it."""
    idle = await Stack().start(lame_duck_s=60)
    async with asyncio.timeout(10):
        await idle.server.drain()
    await idle.channel.close()


async def test_a_caller_of_an_old_connection_reconnects_and_loses_nothing():
    peers = set()

    class Peers(Slow):
        async def GetInfo(self, request, context):
            peers.add(context.peer())
            return target_pb2.TargetServiceGetInfoResponse()

    server = GrpcServer(ServerOptions("127.0.0.1:0", max_connection_age_s=1), [NAME])
    servicer = Peers()
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        stub = target_pb2_grpc.TargetServiceStub(channel)
        long = stub.Generate(target_pb2.TargetServiceGenerateRequest())
        assert (await long.read()).delta.token_ids == [1]
        until_s = asyncio.get_running_loop().time() + 3
        while asyncio.get_running_loop().time() < until_s:
            await stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())
            await asyncio.sleep(0.01)
        servicer.gate.set()
        assert (await long.read()).delta.token_ids == [2] and await long.code() is grpc.StatusCode.OK
    await server.grpc.stop(0)
    assert 3 <= len(peers) <= 6


async def fails(error):
    raise error


@pytest.mark.parametrize(("error", "is_logged"), [(RuntimeError("defect"), True), (PresiftError("no target"), False)])
async def test_a_service_stops_if_what_it_needs_fails(stack, caplog, error, is_logged):
    task = asyncio.create_task(fails(error), name="follow the target")
    stack.server.supervise(task)
    async with asyncio.timeout(10):
        assert not await stack.server.run_until_stopped()
    assert ("follow the target failed" in caplog.text) is is_logged


@pytest.mark.parametrize("failed", [False, True])
async def test_request_stop_drains(stack, failed):
    stack.server.request_stop(failed=failed)
    assert await stack.server.run_until_stopped() is not failed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(stack, number):
    loop = asyncio.get_running_loop()
    stopping = asyncio.create_task(stack.server.run_until_stopped())
    await asyncio.sleep(0)
    os.kill(os.getpid(), number)
    assert await stopping is True
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(each)
