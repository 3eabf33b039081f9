"""A channel that is made anew: calls that run stay where they are, and the old one closes behind the last."""

import asyncio

import grpc
import pytest

from presift.rpc.client.channel import open_channel
from presift.rpc.client.reloading_channel import ReloadingChannel
from presift.rpc.security.file_watcher import FileWatcher
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import target_pb2, target_pb2_grpc

INFO, GENERATE = target_pb2.TargetServiceGetInfoRequest(), target_pb2.TargetServiceGenerateRequest()


class Steady(target_pb2_grpc.TargetServiceServicer):
    async def GetInfo(self, request, context):
        return target_pb2.TargetServiceGetInfoResponse()

    async def Generate(self, request, context):
        for _ in range(request.sampling.max_new_tokens or 2**20):
            yield target_pb2.TargetServiceGenerateResponse()
            if not request.sampling.max_new_tokens:
                await asyncio.sleep(0.01)


class Stack:
    async def start(self, file):
        self.server = GrpcServer(ServerOptions("127.0.0.1:0"), [])
        target_pb2_grpc.add_TargetServiceServicer_to_server(Steady(), self.server.grpc)
        self.address = f"127.0.0.1:{await self.server.start()}"
        self.opened, self.file = [], file

        def open_one(value):
            self.opened.append(open_channel(self.address))
            return self.opened[-1]

        file.write_text("0")
        self.channel = ReloadingChannel(FileWatcher([file], file.read_text), open_one)
        self.stub = target_pb2_grpc.TargetServiceStub(self.channel)
        return self

    def change(self):
        self.file.write_text("0" * (len(self.file.read_text()) + 1))

    def closed(self):
        return [channel._channel.closed() for channel in self.opened]


@pytest.fixture
async def stack(tmp_path):
    stack = await Stack().start(tmp_path / "file")
    yield stack
    await stack.channel.close()
    await stack.server.grpc.stop(0)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_while_nothing_changes_there_is_one(stack):
    for _ in range(3):
        await stack.stub.GetInfo(INFO)
    assert len(stack.opened) == 1


async def replaced(stack):
    """Call until the new one is connected and taken."""
    count, current = len(stack.opened), stack.channel.current()
    stack.change()
    async with asyncio.timeout(10):
        while stack.channel.current() is current:
            await stack.stub.GetInfo(INFO)
    assert len(stack.opened) == count + 1


async def test_an_idle_one_is_replaced_and_closed(stack):
    await stack.stub.GetInfo(INFO)
    await replaced(stack)
    await until(lambda: stack.closed() == [True, False])


async def test_nobody_waits_for_what_does_not_connect(stack):
    """New certificates that the peer does not take, say: the connection that stands is used."""
    await stack.stub.GetInfo(INFO)
    stack.address = "127.0.0.1:1"
    stack.change()
    for _ in range(20):
        await stack.stub.GetInfo(INFO)
    assert stack.closed() == [False, False]
    await stack.server.grpc.stop(0)
    with pytest.raises(grpc.aio.AioRpcError):
        while True:  # until the old one has noticed that it is cut off
            await stack.stub.GetInfo(INFO)
    await until(lambda: stack.channel.current().channel is stack.opened[1])


async def test_a_change_before_the_last_has_come_through_leaves_none_behind(stack):
    await stack.stub.GetInfo(INFO)
    stack.address, whole = "127.0.0.1:1", stack.address
    stack.change()
    await stack.stub.GetInfo(INFO)
    stack.address = whole
    await replaced(stack)
    await until(lambda: stack.closed() == [True, True, False])


@pytest.mark.parametrize("end", ["cancelled", "left to end"])
async def test_one_in_use_closes_behind_its_last_call(stack, end):
    call = stack.stub.Generate(GENERATE)
    await call.read()
    await replaced(stack)
    for _ in range(5):
        await call.read()
    assert stack.closed() == [False, False]
    if end == "cancelled":
        call.cancel()
    else:
        await stack.server.grpc.stop(0)
        with pytest.raises(grpc.aio.AioRpcError):
            while True:
                await call.read()
    await until(lambda: stack.closed()[0])


async def test_waiting_for_a_state_continues_on_the_new_channel(stack):
    """That it was replaced is no change: the peer was not away, and those who know it need not ask again."""
    await stack.channel.channel_ready()
    assert stack.channel.get_state() is grpc.ChannelConnectivity.READY
    waiting = asyncio.create_task(stack.channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
    await asyncio.sleep(0)
    await replaced(stack)
    await until(lambda: stack.closed() == [True, False])
    await asyncio.sleep(0.05)
    assert not waiting.done() and stack.channel.get_state() is grpc.ChannelConnectivity.READY
    await stack.server.grpc.stop(0)
    async with asyncio.timeout(10):
        await waiting


async def test_what_was_sent_before_the_end_is_read_whole(stack):
    """By a caller who is slow, while the channel closes behind the call."""
    sampling = target_pb2.Sampling(max_new_tokens=200)
    call = stack.stub.Generate(target_pb2.TargetServiceGenerateRequest(sampling=sampling))
    await call.read()
    await replaced(stack)
    await asyncio.sleep(0.3)
    messages = 1
    while await call.read() is not grpc.aio.EOF:
        messages += 1
    assert messages == 200 and await call.code() is grpc.StatusCode.OK
    await until(lambda: stack.closed()[0])
