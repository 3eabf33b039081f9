"""The channel between services: what it retries, and that a disconnect cancels the call."""

import asyncio
import json

import grpc
import pytest

from presift.rpc import probe
from presift.rpc.client.channel import open_channel, service_config
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import draft_pb2, draft_pb2_grpc


def test_only_unavailable_is_retried_and_only_what_was_named():
    (method,) = json.loads(service_config([("a.B", "C"), ("a.B", "D")]))["methodConfig"]
    assert method["name"] == [{"service": "a.B", "method": "C"}, {"service": "a.B", "method": "D"}]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_retries_are_throttled_and_health_is_asked_for_where_it_is_said():
    assert "healthCheckConfig" not in json.loads(service_config([]))
    config = json.loads(service_config([], "a.B"))
    assert config["healthCheckConfig"] == {"serviceName": "a.B"}
    assert config["retryThrottling"] == {"maxTokens": 10, "tokenRatio": 0.1}


class Waiting(draft_pb2_grpc.DraftServiceServicer):
    def __init__(self):
        self.running = self.cancelled = 0

    async def Score(self, request, context):
        self.running += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_cancelled_caller_ends_the_call_on_the_wire():
    servicer, server = Waiting(), GrpcServer(ServerOptions("127.0.0.1:0"), [])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    channel = open_channel(f"127.0.0.1:{await server.start()}")
    stub = draft_pb2_grpc.DraftServiceStub(channel)

    async def ask():
        await stub.Score(draft_pb2.ScoreRequest())

    asking = asyncio.create_task(ask())
    await until(lambda: servicer.running == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: servicer.running == 0)
    assert servicer.cancelled == 1
    await channel.close()
    await server.grpc.stop(0)


class Flaky(Waiting):
    async def Score(self, request, context):
        self.running += 1
        if self.running == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "by the fake")
        return draft_pb2.ScoreResponse()


async def test_a_long_prompt_is_sent_again():
    """300,000 token ids are more than gRPC keeps by itself."""
    servicer, server = Flaky(), GrpcServer(ServerOptions("127.0.0.1:0"), [])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    retryable = [("presift.v1.DraftService", "Score")]
    channel = open_channel(f"127.0.0.1:{await server.start()}", retryable=retryable)
    await draft_pb2_grpc.DraftServiceStub(channel).Score(draft_pb2.ScoreRequest(token_ids=[150_000] * 300_000))
    assert servicer.running == 2
    await channel.close()
    await server.grpc.stop(0)


@pytest.fixture
async def port():
    servicer, server = Flaky(), GrpcServer(ServerOptions("127.0.0.1:0"), [])
    servicer.running = 1  # the next call is answered
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    yield await server.start()
    await server.grpc.stop(0)


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy"])
async def test_a_proxy_of_the_environment_is_not_used(port, monkeypatch, name):
    for each in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    async with open_channel(f"127.0.0.1:{port}") as channel:
        await draft_pb2_grpc.DraftServiceStub(channel).Score(draft_pb2.ScoreRequest(), timeout=10)
    assert await asyncio.to_thread(probe.main, [f"127.0.0.1:{port}", "--service=liveness"]) == 0


EAGER = [("grpc.keepalive_time_ms", 1_100), ("grpc.keepalive_permit_without_calls", 1)]


async def test_a_client_may_ping_every_second_with_and_without_a_call():
    servicer, server = Waiting(), GrpcServer(ServerOptions("127.0.0.1:0"), [])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    address = f"127.0.0.1:{await server.start()}"
    options = [*EAGER, ("grpc.http2.max_pings_without_data", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as idle, grpc.aio.insecure_channel(address, options) as busy:
        await idle.channel_ready()
        call = draft_pb2_grpc.DraftServiceStub(busy).Score(draft_pb2.ScoreRequest())
        await asyncio.sleep(6)
        assert not call.done() and idle.get_state() is grpc.ChannelConnectivity.READY
        call.cancel()
    await server.grpc.stop(0)
