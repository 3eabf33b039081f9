"""Running calls: a limit that health checks do not count against, and a drain that ends."""

import asyncio
import os
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.core.errors import DeadlineExceeded, InvalidRequest, Overloaded, ShuttingDown
from presift.rpc.server import request_reader
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.v1 import target_pb2, target_pb2_grpc

NAME = "presift.v1.TargetService"
GENERATE, PREFILL = target_pb2.TargetServiceGenerateRequest(), target_pb2.PrefillRequest()
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Waiting(target_pb2_grpc.TargetServiceServicer):
    """Both methods wait for `gate`. `cancelled` counts those that were cancelled meanwhile."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.begun = self.cancelled = 0

    async def Generate(self, request, context):
        yield target_pb2.TargetServiceGenerateResponse()
        await self._wait()
        yield target_pb2.TargetServiceGenerateResponse()

    async def Prefill(self, request, context):
        await self._wait()
        return target_pb2.PrefillResponse()

    async def _wait(self):
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Stack:
    def __init__(self, **options):
        self.servicer = Waiting()
        self.server = GrpcServer(ServerOptions("127.0.0.1:0", **options), [NAME])
        target_pb2_grpc.add_TargetServiceServicer_to_server(self.servicer, self.server.grpc)

    async def start(self):
        self.address = f"127.0.0.1:{await self.server.start()}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = target_pb2_grpc.TargetServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        return self

    def generate(self):
        return asyncio.create_task(_all(self.stub.Generate(GENERATE)))

    def prefill(self):
        return asyncio.create_task(_one(self.stub.Prefill(PREFILL)))

    async def begun(self, count):
        await settle(lambda: self.servicer.begun == count)

    async def stop(self):
        self.servicer.gate.set()
        await self.channel.close()
        await self.server.grpc.stop(0)


@pytest.fixture
async def open_stack():
    stacks = []

    async def build(**options):
        stacks.append(await Stack(**options).start())
        return stacks[-1]

    yield build
    for stack in stacks:
        await stack.stop()


async def _all(call):
    return [event async for event in call]


async def _one(call):
    return await call


async def settle(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def refusal_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code(), error_of(failure.value)


async def test_what_is_too_much_is_refused_while_health_answers(open_stack):
    stack = await open_stack(max_calls=2)
    running = [stack.generate(), stack.prefill()]
    await stack.begun(2)
    for call in (stack.generate(), stack.prefill()):
        code, error = await refusal_of(call)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(error, Overloaded)
        assert (error.field, error.value, error.limit) == ("calls", "2", "< 2")
        assert error.retry_after_s > 0
    assert (await stack.health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
    assert stack.servicer.begun == 2
    running[0].cancel()
    await settle(lambda: stack.server.calls.running == 1)
    again = stack.generate()
    await stack.begun(3)
    stack.servicer.gate.set()
    assert len(await again) == 2
    await running[1]
    await settle(lambda: stack.server.calls.running == 0)


async def test_what_is_refused_is_not_parsed(open_stack):
    stack = await open_stack(max_calls=1)
    running = stack.generate()
    await stack.begun(1)
    code, error = await refusal_of(_all(stack.channel.unary_stream(f"/{NAME}/Generate")(b"\xff\xff\xff")))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(error, Overloaded)
    stack.servicer.gate.set()
    await running


async def silence():
    """Headers alone: the message does not come."""
    await asyncio.Event().wait()
    yield b""


def headers_alone(stack, method="Generate"):
    kind = stack.channel.stream_stream if method == "Generate" else stack.channel.stream_unary
    call = kind(f"/{NAME}/{method}")(silence())
    return asyncio.create_task(_all(call) if method == "Generate" else _one(call))


@pytest.mark.parametrize("method", ["Generate", "Prefill"])
async def test_a_call_without_its_message_ends_by_itself(open_stack, monkeypatch, method):
    monkeypatch.setattr(request_reader, "MESSAGE_S", 0.2)
    stack = await open_stack(max_calls=1)
    async with asyncio.timeout(10):
        code, error = await refusal_of(headers_alone(stack, method))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED and isinstance(error, DeadlineExceeded)
    await settle(lambda: stack.server.calls.running == 0)
    stack.servicer.gate.set()
    assert len(await stack.generate()) == 2


async def test_a_late_message_ends_while_memory_is_short(open_stack):
    stack = await open_stack(max_memory_bytes=1)
    async with asyncio.timeout(10):
        code, error = await refusal_of(headers_alone(stack))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(error, Overloaded)
    assert (error.field, error.limit) == ("memory", "<= 1 bytes") and error.retry_after_s > 0
    stack.servicer.gate.set()
    assert len(await stack.generate()) == 2  # its message comes with its headers


async def test_the_bytes_of_all_requests_are_bounded(open_stack):
    stack = await open_stack(max_message_bytes=2**16, max_received_bytes=3 * 2**15)
    message = target_pb2.PrefillRequest(cache_salt="x" * 2**15)  # with its header a little more than 32 KiB
    running = [asyncio.create_task(_one(stack.stub.Prefill(message))) for _ in range(2)]
    await stack.begun(2)
    async with asyncio.timeout(10):
        code, error = await refusal_of(_one(stack.stub.Prefill(message)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(error, Overloaded)
    size = message.ByteSize()
    assert (error.field, error.value, error.limit) == ("received_bytes", str(3 * size), f"<= {3 * 2**15}")
    assert (await stack.health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
    assert stack.server.calls.request_bytes == 2 * size
    shown = {each.name: list(each.read()) for each in stack.server.gauges()}
    assert shown["presift.received.bytes"] == [(2 * size, {})] and shown["presift.memory.limit.bytes"] == []
    stack.servicer.gate.set()
    await asyncio.gather(*running)
    await settle(lambda: stack.server.calls.request_bytes == 0)
    await stack.stub.Prefill(message)


async def test_a_call_that_ends_without_a_message_is_malformed(open_stack):
    stack = await open_stack()

    async def nothing():
        return
        yield b""

    code, error = await refusal_of(_one(stack.channel.stream_unary(f"/{NAME}/Prefill")(nothing())))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and isinstance(error, InvalidRequest)


async def test_a_drain_ends_a_call_without_its_message(open_stack):
    stack = await open_stack(drain_s=0.1)
    waiting = headers_alone(stack)
    await settle(lambda: stack.server.calls.running == 1)
    async with asyncio.timeout(10):
        _, (code, error) = await asyncio.gather(stack.server.drain(), refusal_of(waiting))
    assert code is grpc.StatusCode.UNAVAILABLE and isinstance(error, ShuttingDown)


async def test_one_connection_does_not_take_all_places(open_stack):
    stack = await open_stack(max_calls=40)
    waiting = [headers_alone(stack) for _ in range(40)]
    await settle(lambda: stack.server.calls.running == 10)
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(stack.address, own_connection) as other:
        stack.servicer.gate.set()
        assert len(await _all(target_pb2_grpc.TargetServiceStub(other).Generate(GENERATE))) == 2
    assert stack.server.calls.running == 10
    for call in waiting:
        call.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_watches_of_health_are_bounded_too(open_stack):
    stack = await open_stack(max_calls=2)
    watches = [stack.health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
    for watch in watches:
        await watch.read()
    code, _ = await refusal_of(_all(stack.health.Watch(health_pb2.HealthCheckRequest())))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Kubernetes' probe is a check: refused, it would restart the pod.
    assert (await stack.health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
    stack.servicer.gate.set()
    assert len(await stack.generate()) == 2


async def relay_from(host, port):
    """A port at which connections are relayed to `port` on this machine, from an address of their own."""

    async def pump(reader, writer):
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def relay(reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_connections_of_one_host_do_not_take_all_watches(open_stack):
    stack, own_connection = await open_stack(max_calls=40), [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(stack.address, own_connection) for _ in range(6)]
    watches, refused = [], []
    for channel in channels:
        for _ in range(9):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            try:
                await watch.read()
            except grpc.aio.AioRpcError as failure:
                refused.append(error_of(failure))
            else:
                watches.append(watch)
    assert len(watches) == 10 and {(each.field, each.limit) for each in refused} == {
        ("health watches of the host", "< 10")
    }
    relay, port = await relay_from("127.0.0.2", int(stack.address.rpartition(":")[2]))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", own_connection) as other:
        watch = health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await settle(lambda: len(stack.server.calls._watches) == 10)
    watches.pop().cancel()
    await settle(lambda: len(stack.server.calls._watches) <= 9)
    again = stack.health.Watch(health_pb2.HealthCheckRequest())
    assert (await again.read()).status == NOT_SERVING
    for each in (again, *watches):
        each.cancel()
    await settle(lambda: not stack.server.calls._watches and not stack.server.calls._hosts._held)
    for channel in channels:
        await channel.close()
    relay.close()


async def test_an_unknown_method_takes_no_place(open_stack):
    stack = await open_stack(max_calls=1)
    for _ in range(3):
        code, _ = await refusal_of(_one(stack.channel.unary_unary(f"/{NAME}/Nothing")(b"")))
        assert code is grpc.StatusCode.UNIMPLEMENTED
    stack.servicer.gate.set()
    await stack.prefill()


async def test_a_drain_notifies_health_watches_and_does_not_wait_for_them(open_stack):
    stack = await open_stack(drain_s=3600.0)
    await stack.server.set_serving(True)
    watch = stack.health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    running = stack.generate()
    await stack.begun(1)
    draining = asyncio.create_task(stack.server.drain())
    assert (await watch.read()).status == NOT_SERVING
    assert not draining.done(), "a call that runs is waited for"
    stack.servicer.gate.set()
    assert len(await running) == 2
    async with asyncio.timeout(20):
        await draining


async def test_calls_that_a_drain_cuts_get_the_error_and_are_cancelled_once(open_stack):
    stack = await open_stack(drain_s=0.05)
    running = [stack.generate(), stack.prefill()]
    await stack.begun(2)
    await stack.server.drain()
    for call in running:
        code, error = await refusal_of(call)
        assert code is grpc.StatusCode.UNAVAILABLE and isinstance(error, ShuttingDown)
    assert stack.servicer.cancelled == 2 and stack.server.calls.running == 0


async def test_a_callers_own_cancellation_is_no_shutdown(open_stack):
    stack = await open_stack()
    call = stack.stub.Generate(GENERATE)
    await call.read()
    await stack.begun(1)
    call.cancel()
    await settle(lambda: stack.server.calls.running == 0)
    assert stack.servicer.cancelled == 1
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_a_second_signal_does_no_harm(open_stack):
    stack, loop = await open_stack(drain_s=600.0), asyncio.get_running_loop()
    running = stack.generate()
    await stack.begun(1)
    stopping = asyncio.create_task(stack.server.run_until_stopped())
    await asyncio.sleep(0)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
    assert not stopping.done() and not running.done()
    stack.servicer.gate.set()
    assert len(await running) == 2
    assert await stopping is True
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(each)
