"""Fields are counted in the bytes: what would fill the memory is refused before it is parsed."""

import time

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain import limits
from presift.rpc.server import field_count
from presift.rpc.server.field_count import MAX_FIELDS, check_field_count
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.v1 import draft_pb2, orchestrator_pb2, orchestrator_pb2_grpc, plan_pb2, target_pb2

GENERATE = orchestrator_pb2.GenerateRequest.DESCRIPTOR
MIB = 2**20


def delimited(number, content):
    head, size = bytes([number << 3 | 2]), len(content)
    while size > 127:
        head, size = head + bytes([size & 127 | 128]), size >> 7
    return head + bytes([size]) + content


def chat(content):
    return delimited(1, delimited(2, content))


# Two bytes each on the wire, in 24 MiB; unknown fields and scalars too, which only take time
MANY = {
    "messages": lambda: chat(b"\x0a\x00" * 12 * MIB),
    "parts": lambda: chat(delimited(1, b"\x12\x00" * 12 * MIB)),
    "tools": lambda: chat(b"\x12\x00" * 12 * MIB),
    "spans": lambda: delimited(1, b"\x22\x00" * 12 * MIB),
    "stop strings": lambda: delimited(2, b"\x32\x00" * 12 * MIB),
    "prompts": lambda: b"\x0a\x00" * 12 * MIB,
    "unknown": lambda: b"\x78\x00" * 12 * MIB,
}


def refused_in_s(raw):
    """Processor time of this thread."""
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match=f"{MAX_FIELDS} fields"):
        check_field_count(raw, GENERATE)
    return time.thread_time() - began


@pytest.mark.parametrize("made", MANY.values(), ids=MANY)
def test_too_many_are_refused_in_little_time(made):
    raw = made()
    # About 40 ms; counted to the end, eight seconds. The best of three: a garbage collection may fall into one.
    assert min(refused_in_s(raw) for _ in range(3)) < 0.3


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (draft_pb2.ScoreRequest, "protected_spans"),
        (target_pb2.TargetServiceGenerateRequest, "kv_plan"),
    ],
)
def test_the_other_services_are_protected_too(message, name):
    field = message.DESCRIPTOR.fields_by_name[name]
    raw = bytes([field.number << 3 | 2, 0]) * 100_000
    with pytest.raises(InvalidRequest):
        check_field_count(raw, message.DESCRIPTOR)


def test_the_largest_request_within_the_limits_passes():
    parts = limits.MAX_PARTS // limits.MAX_MESSAGES
    part = orchestrator_pb2.TextPart(text="x" * 500, protected=True, document=False)
    message = orchestrator_pb2.Message(role="user", name="n", reasoning="r", protected=True, parts=[part] * parts)
    message.tool_call_id = "c"
    called = orchestrator_pb2.Message(role="assistant", tool_calls_json=["{}"] * limits.MAX_TOOL_CALLS)
    chat = orchestrator_pb2.Chat(messages=[message] * (limits.MAX_MESSAGES - 1) + [called], tools_json=["{}"] * 512)
    request = orchestrator_pb2.GenerateRequest(
        prompt=orchestrator_pb2.Prompt(chat=chat, protected_spans=[plan_pb2.Span(start=1, end=2)] * 16_384),
        sampling=target_pb2.Sampling(stop=["x"] * 16, logit_bias=dict.fromkeys(range(1024), 1.0)),
    )
    check_field_count(request.SerializeToString(), GENERATE)


def test_a_million_token_ids_are_few_fields():
    ids = orchestrator_pb2.TokenIds(ids=[100_000] * 2**20)
    request = orchestrator_pb2.GenerateRequest(prompt=orchestrator_pb2.Prompt(token_ids=ids))
    check_field_count(request.SerializeToString(), GENERATE)


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_or_malformed(raw):
    pad = delimited(15, bytes(field_count._SHORT))
    try:
        check_field_count(pad + raw, GENERATE)
    except DecodeError:
        with pytest.raises(DecodeError):
            check_field_count(pad + raw, GENERATE)


class Orchestrator(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    pass


async def test_a_server_refuses_them_by_presifts_error():
    server = GrpcServer(ServerOptions("127.0.0.1:0"), ["presift.v1.OrchestratorService"])
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(Orchestrator(), server.grpc)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream("/presift.v1.OrchestratorService/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            async for _ in call(chat(b"\x0a\x00" * MIB)):
                pass
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(error_of(failure.value), InvalidRequest) and "fields" in failure.value.details()
    await server.grpc.stop(0)
