"""Errors on their way to the wire: ours in full, foreign ones by their type alone."""

import asyncio
import logging

import grpc
import pytest

from presift.core.errors import InvalidRequest
from presift.rpc.server import error_interceptor
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.v1 import draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc

SECRET = "xylophone"


class Raising(draft_pb2_grpc.DraftServiceServicer, target_pb2_grpc.TargetServiceServicer):
    """Raises `error`: at once, or after a message."""

    def __init__(self):
        self.error, self.closed = None, 0

    async def Score(self, request, context):
        raise self.error

    async def GetInfo(self, request, context):
        return draft_pb2.DraftServiceGetInfoResponse(max_queue=7)

    async def Generate(self, request, context):
        try:
            yield target_pb2.TargetServiceGenerateResponse()
            if self.error:
                raise self.error
            while True:
                yield target_pb2.TargetServiceGenerateResponse()
        finally:
            self.closed += 1


@pytest.fixture
async def stack():
    servicer, server = Raising(), GrpcServer(ServerOptions("127.0.0.1:0"), [])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, draft_pb2_grpc.DraftServiceStub(channel), target_pb2_grpc.TargetServiceStub(channel), channel
    await server.grpc.stop(0)


async def unary(stub):
    await stub.Score(draft_pb2.ScoreRequest())


async def stream(stub):
    async for _ in stub.Generate(target_pb2.TargetServiceGenerateRequest()):
        pass


async def failed(stack, error, kind):
    servicer, draft, target, _ = stack
    servicer.error = error
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await (unary(draft) if kind is unary else stream(target))
    return failure.value


@pytest.mark.parametrize("kind", [unary, stream])
async def test_presift_errors_keep_their_text(stack, kind):
    failure = await failed(stack, InvalidRequest("prompt", 5, "<= 4"), kind)
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details() == "prompt is 5; it must be <= 4"
    assert error_of(failure).details == {"field": "prompt", "value": "5", "limit": "<= 4"}


@pytest.mark.parametrize("kind", [unary, stream])
@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), grpc.RpcError(SECRET), TimeoutError(SECRET)])
async def test_foreign_errors_are_internal_and_withheld(stack, caplog, kind, error):
    caplog.set_level(logging.DEBUG)
    failure = await failed(stack, error, kind)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in failure.details() and not error_of(failure).details
    logged = [each for each in caplog.records if each.name == "presift.rpc.server.error_interceptor"]
    assert len(logged) == 1 and logged[0].levelno == logging.ERROR
    assert SECRET not in caplog.text
    assert "test_error_interceptor.py" in caplog.text  # where it came from is told


async def test_a_chain_of_foreign_errors_is_withheld(stack, caplog):
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as cause:
            raise RuntimeError(SECRET) from cause
    except RuntimeError as error:
        await failed(stack, error, unary)
    assert SECRET not in caplog.text and caplog.records


@pytest.mark.parametrize("method", ["DraftService/Score", "TargetService/Generate"])
async def test_malformed_bytes_are_invalid(stack, method):
    _, _, _, channel = stack
    call = channel.unary_stream(f"/presift.v1.{method}", request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        [each async for each in call(b"\xff")]
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(failure.value).details["field"] == "request"


async def test_a_stream_is_closed_when_its_caller_disconnects(stack):
    servicer, _, target, _ = stack
    call = target.Generate(target_pb2.TargetServiceGenerateRequest())
    await call.read()
    call.cancel()
    async with asyncio.timeout(10):
        while servicer.closed == 0:
            await asyncio.sleep(0.002)
    assert servicer.closed == 1


async def test_the_bytes_of_a_large_message_are_freed_once_it_is_parsed():
    """gRPC keeps what the deserializer returned until the call ends."""
    large = error_interceptor._Unparsed(lambda: "message")
    assert await error_interceptor._parsed(large) == "message" and large.parse is None


class Serializing(draft_pb2_grpc.DraftServiceServicer):
    """Answers `answer`, which is already bytes."""

    answer = b""

    async def Score(self, request, context):
        return self.answer


async def test_a_response_that_is_already_serialized_counts_until_it_is_sent():
    """Nobody else counts it, and its caller may not read it."""
    options = ServerOptions("127.0.0.1:0", max_received_bytes=1000, max_message_bytes=1000)
    servicer, server = Serializing(), GrpcServer(options, [])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub, small = draft_pb2_grpc.DraftServiceStub(channel), draft_pb2.ScoreResponse(importance=[0.5] * 40)
        servicer.answer = small.SerializeToString()
        assert [await stub.Score(draft_pb2.ScoreRequest()) for _ in range(20)] == [small] * 20
        servicer.answer = draft_pb2.ScoreResponse(importance=[0.5] * 400).SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Score(draft_pb2.ScoreRequest())
    assert error_of(failure.value).field == "received_bytes"
    await server.grpc.stop(0)
