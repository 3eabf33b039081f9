"""Hostile input to every service: compression bombs, garbage and endless metadata are rejected in bounded memory."""

import asyncio
import gzip
import re
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.core.errors import PromptTooLong
from presift.draft.servicer import DraftServicer
from presift.draft.work_queue import WorkQueue
from presift.orchestrator.domain.limits import MAX_EXPLAINED_SPANS
from presift.rpc.client.channel import open_channel
from presift.rpc.limits import MAX_METADATA_BYTES
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import draft_pb2_grpc, orchestrator_pb2, plan_pb2, target_pb2, target_pb2_grpc

from ...echo_engine import EchoEngine
from ..fakes.services import raises
from ..fakes.stack import Refusal, refusal_of, request

METHODS = {
    "target": ("TargetService/Generate", "TargetService/Prefill"),
    "draft": ("DraftService/Score",),
    "orchestrator": ("OrchestratorService/Generate", "OrchestratorService/Explain"),
}
ALL = [method for methods in METHODS.values() for method in methods]
LIMIT_BYTES = 2**20


@pytest.fixture
async def address(open_stack):
    """method -> the address of a real server that has it"""
    stack, queue = await open_stack(message_bytes=LIMIT_BYTES), WorkQueue(4)
    servers = {name: GrpcServer(ServerOptions("127.0.0.1:0", LIMIT_BYTES), []) for name in ("target", "draft")}
    target, draft = TargetServicer(Admission(4, 4)), DraftServicer(queue, 16)
    target.use(EchoEngine())
    draft.use(object())  # no request reaches it
    target_pb2_grpc.add_TargetServiceServicer_to_server(target, servers["target"].grpc)
    draft_pb2_grpc.add_DraftServiceServicer_to_server(draft, servers["draft"].grpc)
    places = {name: f"127.0.0.1:{await server.start()}" for name, server in servers.items()}
    places["orchestrator"] = stack.address
    yield lambda method: next(places[name] for name, methods in METHODS.items() if method in methods)
    for server in servers.values():
        await server.grpc.stop(0)
    queue.close()


async def send(address, method, raw, *, metadata=None, compression=None, options=()):
    """The answer to exactly these bytes, or the error."""
    async with grpc.aio.insecure_channel(address, compression=compression, options=options) as channel:
        call = channel.unary_stream(f"/presift.v1.{method}", request_serializer=bytes, response_deserializer=bytes)
        try:
            return [event async for event in call(raw, metadata=metadata, timeout=60)]
        except grpc.aio.AioRpcError as error:
            return Refusal.of(error)


class Watch:
    """The peak memory of this process, in bytes above that on entry, as the kernel measured it."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self._start = high_water_bytes()
        return self

    def __exit__(self, *exit):
        self.grown_bytes = high_water_bytes() - self._start


def high_water_bytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def bomb(size):
    """A TokenIds-like field of that many zero bytes."""
    return b"\x0a" + varint(size) + bytes(size)


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_compressed_message_is_rejected_with_a_status(address, method, compression):
    refusal = await send(address(method), method, bomb(1000), compression=compression)
    assert refusal.code == "UNIMPLEMENTED", refusal
    ordinary = await send(address(method), method, b"\xff")
    assert (ordinary.code, ordinary.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


CLIENT = """
import sys, grpc
raw = b"\\x0a\\x80\\x80\\x80\\x80\\x01" + bytes(256 * 2**20)
with grpc.insecure_channel(sys.argv[1], compression=grpc.Compression.Gzip) as channel:
    call = channel.unary_stream(sys.argv[2], request_serializer=bytes, response_deserializer=bytes)
    try:
        print(list(call(raw, timeout=120)))
    except grpc.RpcError as error:
        print(error.code().name)
"""


@pytest.mark.processes
@pytest.mark.parametrize("method", [methods[0] for methods in METHODS.values()])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark")
async def test_a_bomb_in_a_request_is_not_unpacked(address, method):
    """256 MiB in a quarter of one, sent from another process, so that this one has only the servers' memory."""
    with Watch() as watch:
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENT, address(method), f"/presift.v1.{method}"), stdout=asyncio.subprocess.PIPE
        )
        told, _ = await client.communicate()
    assert told.decode().strip() == "UNIMPLEMENTED"
    assert watch.grown_bytes < 32 * 2**20, f"{watch.grown_bytes / 2**20:.0f} MiB"
    assert (await send(address(method), method, b"\xff")).code == "INVALID_ARGUMENT"


PEER = """
import asyncio, grpc

async def answer(request, context):
    return bytes(256 * 2**20)

async def main():
    server = grpc.aio.server(compression=grpc.Compression.Gzip, options=[("grpc.max_send_message_length", -1)])
    handlers = {"Z": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("x.Y", handlers)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark")
async def test_a_bomb_in_an_answer_is_not_unpacked_either():
    """A draft or target that answers in gzip."""
    peer = await asyncio.create_subprocess_exec(sys.executable, "-c", PEER, stdout=asyncio.subprocess.PIPE)
    channel = open_channel(f"127.0.0.1:{int(await peer.stdout.readline())}")
    try:
        with Watch() as watch, pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary("/x.Y/Z", bytes, target_pb2.PrefillResponse.FromString)(b"", timeout=60)
    finally:
        await channel.close()
        peer.kill()
        await peer.communicate()
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert watch.grown_bytes < 32 * 2**20, f"{watch.grown_bytes / 2**20:.0f} MiB"


@pytest.mark.parametrize("method", ALL)
async def test_garbage_is_rejected_and_the_service_stays_up(address, method):
    for raw in (b"\xff", b"\x0a\x7f", gzip.compress(b"x"), b"\x00" * 100, b"\x0b" * 1000, b"\x0a\xff\xff\xff\xff\x7f"):
        refusal = await send(address(method), method, raw)
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST"), raw
        assert refusal.field == "request"


@pytest.mark.parametrize("method", ALL)
async def test_a_message_over_the_limit_is_rejected(address, method):
    refusal = await send(address(method), method, bytes(2 * LIMIT_BYTES))
    assert refusal.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("method", ALL)
async def test_endless_metadata_is_rejected_and_ordinary_metadata_is_not(address, method):
    roomy = [("grpc.max_metadata_size", 2**24), ("grpc.absolute_max_metadata_size", 2**24)]
    for size, code in ((MAX_METADATA_BYTES // 2, "INVALID_ARGUMENT"), (2 * MAX_METADATA_BYTES, "RESOURCE_EXHAUSTED")):
        refusal = await send(address(method), method, b"\xff", metadata=[("x-much", "y" * size)], options=roomy)
        assert refusal.code == code, size


async def test_health_has_the_same_limits(address):
    place = address("TargetService/Generate")
    async with grpc.aio.insecure_channel(place, compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x" * 1000))
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_explanation_of_too_many_spans_is_rejected(stack, monkeypatch):
    monkeypatch.setattr("presift.orchestrator.planning.explain.MAX_EXPLAINED_SPANS", 99)
    asked = orchestrator_pb2.ExplainRequest(prompt=request([7] * 100).prompt, span_per_token=True)
    refusal = await refusal_of(stack.stub.Explain(asked))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "span_per_token")
    assert (refusal.value, refusal.limit) == ("100 spans", "at most 99")
    asked.span_per_token = False
    assert len((await stack.stub.Explain(asked)).spans) < 99
    assert MAX_EXPLAINED_SPANS * 64 < 34 * 2**20  # what the message limit is by default


async def test_a_text_of_too_many_tokens_is_rejected(stack, monkeypatch):
    monkeypatch.setattr("presift.orchestrator.domain.limits.MAX_PROMPT_TOKENS", 50)
    refusal = await stack.refused("x" * 51)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
    assert (refusal.field, refusal.value, refusal.limit) == ("prompt", "51 tokens", "at most 50")
    assert (await stack.ask("x" * 50)).usage.prompt_tokens == 50


@pytest.mark.parametrize("budget", [{}, {"strict": True, "max_prompt_tokens": 20}])
async def test_a_prompt_that_neither_model_can_read_is_invalid(stack, budget):
    """Found by fuzzing: the status was UNAVAILABLE, which asks for a retry."""
    stack.draft.faults.append(raises(PromptTooLong("token_ids", "501 tokens", "<= 450")))
    refusal = await stack.refused([7] * 500, budget=budget)
    assert (refusal.code, refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG", "prompt")
    assert (refusal.value, refusal.limit) == ("501 tokens", "<= 450")
    assert (await stack.ask([7] * 500, budget=budget)).route == "SPEC_PC"


async def test_an_explanation_over_the_message_limit_is_rejected(open_stack):
    stack = await open_stack(message_bytes=20_000)
    asked = orchestrator_pb2.ExplainRequest(prompt=request("x" * 390).prompt, span_per_token=True)
    assert (await stack.stub.Explain(asked)).ByteSize() < 20_000
    stack = await open_stack(message_bytes=4_000)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stack.stub.Explain(asked)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


ABSURD = {
    "NaN temperature": {"sampling": {"temperature": float("nan")}},
    "infinite temperature": {"sampling": {"temperature": float("inf")}},
    "negative temperature": {"sampling": {"temperature": -1.0}},
    "NaN top_p": {"sampling": {"top_p": float("nan")}},
    "top_p of 0": {"sampling": {"top_p": 0.0}},
    "infinite top_p": {"sampling": {"top_p": float("inf")}},
    "top_k of 0": {"sampling": {"top_k": 0}},
    "NaN coverage": {"budget": {"min_coverage": float("nan")}},
    "infinite coverage": {"budget": {"min_coverage": float("inf")}},
    "negative coverage": {"budget": {"min_coverage": -0.5}},
    "NaN auto coverage": {"budget": {"auto_capacity": {"coverage": float("nan")}}},
    "auto coverage of 2": {"budget": {"auto_capacity": {"coverage": 2.0}}},
    "all the lookahead": {"kv": {"lookahead_tokens": 2**32 - 1}},
    "an unknown selection": {"kv": {"selection": 77}},
    "a negative selection": {"kv": {"selection": -1}},
    "an unknown route": {"route": 2**31 - 1},
}


@pytest.mark.parametrize("asked", ABSURD.values(), ids=ABSURD)
async def test_absurd_numbers(stack, echo, asked):
    parsed = request(list(range(100, 200)), **asked)
    call = stack.stub.Generate(parsed)
    if "sampling" in asked:  # checked by the target
        call = echo.Generate(target_pb2.TargetServiceGenerateRequest(token_ids=[1], sampling=parsed.sampling))
    refusal = await refusal_of(first(call))
    assert refusal.code == "INVALID_ARGUMENT" and refusal.field and refusal.limit, refusal


async def first(call):
    return [event async for event in call]


@pytest.fixture
async def echo():
    """A stub of a single target."""
    servicer, server = TargetServicer(Admission(4, 4)), GrpcServer(ServerOptions("127.0.0.1:0"), [])
    servicer.use(EchoEngine())
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        yield target_pb2_grpc.TargetServiceStub(channel)
    await server.grpc.stop(0)


LARGE = {
    "budgets": {"budget": {"max_prompt_tokens": 2**32 - 1, "max_kv_tokens": 2**32 - 1, "max_ttft_ms": 2**32 - 1}},
    "threshold": {"budget": {"compress_above_tokens": 2**32 - 1}},
    "auto": {"budget": {"auto_capacity": {"coverage": 1.0, "min_tokens": 2**32 - 1, "max_tokens": 2**32 - 1}}},
    "seed": {"sampling": {"seed": 2**64 - 1}},
    "top_k": {"sampling": {"top_k": 2**32 - 1}},
    "least": {"budget": {"min_coverage": 1e-45}},
}


@pytest.mark.parametrize("asked", LARGE.values(), ids=LARGE)
async def test_valid_large_numbers_are_served(stack, asked):
    answer = await stack.ask(list(range(100, 200)), **asked)
    assert answer.usage.completion_tokens == 5


MASKS = [
    (2**32 - 1, 2**32 - 1, 0),
    (5, 5, 0),
    (0, 1, 8),
    (0, 0, 0),
    (2**32 - 1, 2**32 - 1, 2**32 - 1),
    (1, 1, 2**32 - 1),
]


@pytest.mark.parametrize("shape", MASKS)
async def test_a_mask_of_an_absurd_shape(echo, shape):
    layers, kv_heads, prompt_tokens = shape
    mask = plan_pb2.KvMask(layers=layers, kv_heads=kv_heads, prompt_tokens=prompt_tokens)
    policy = plan_pb2.SpecKv(capacity=8, window=2, selection=plan_pb2.KV_SELECTION_DRAFT_MASK)
    asked = target_pb2.TargetServiceGenerateRequest(
        token_ids=range(100), kv_plan=target_pb2.KvPlan(policy=policy, kv_mask=mask)
    )
    refusal = await refusal_of(first(echo.Generate(asked)))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "kv_mask" if 0 in shape else "kv_mask.kept")
