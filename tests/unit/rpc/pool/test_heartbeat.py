"""Connections to servers that are not presift's, such as a mesh's: gRPC's own limits of pings must not end a call.

The times are a fifth of the real ones.
"""

import asyncio

import grpc
import pytest

from presift.orchestrator.backends.draft_client import DraftClient
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.rpc.client import channel
from presift.rpc.pool import heartbeat
from presift.v1 import draft_pb2, draft_pb2_grpc

# Without heartbeats the fourth ping ends the call.
SILENT_S = 6.0


class Silent(draft_pb2_grpc.DraftServiceServicer):
    def __init__(self):
        self.calls = 0

    async def GetInfo(self, request, context):
        self.calls += 1
        await asyncio.sleep(SILENT_S)
        return draft_pb2.DraftServiceGetInfoResponse()


@pytest.fixture
async def stock():
    """A server with gRPC's defaults: its address and its servicer."""
    servicer, server = Silent(), grpc.aio.server()
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", servicer
    await server.stop(0)


@pytest.fixture(autouse=True)
def sooner(monkeypatch):
    monkeypatch.setattr(channel, "KEEPALIVE_MS", 1_000)
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.8)


async def test_a_long_silent_call_to_a_server_with_grpcs_defaults_succeeds(stock):
    address, servicer = stock
    client = DraftClient(address, 2**20, PrefixIndex())
    await client._pool.only.stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest())
    assert servicer.calls == 1  # gRPC repeats a call whose connection was closed
    await client.aclose()


async def test_without_heartbeats_it_fails(stock):
    """That this can be tested so."""
    address, _ = stock
    async with channel.open_channel(address) as alone:
        with pytest.raises(grpc.aio.AioRpcError, match="Too many pings"):
            await draft_pb2_grpc.DraftServiceStub(alone).GetInfo(draft_pb2.DraftServiceGetInfoRequest())
