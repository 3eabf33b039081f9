"""TargetService as its callers see it: a real server in this process, around an engine computable by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.core import errors
from presift.rpc.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.target.admission import Admission
from presift.target.echo_engine import EchoEngine
from presift.target.servicer import TargetServicer
from presift.v1 import plan_pb2, target_pb2, target_pb2_grpc

SERVICE = "presift.v1.TargetService"
PROMPT = [5, 6, 7]


@dataclass
class Target:
    engine: EchoEngine
    server: GrpcServer
    channel: grpc.aio.Channel
    stub: target_pb2_grpc.TargetServiceAsyncStub

    def generate(self, token_ids: list[int] = PROMPT, salt: str = "", timeout: float = 10.0, **sampling: Any) -> Any:
        request = target_pb2.TargetServiceGenerateRequest(
            token_ids=token_ids, sampling=target_pb2.Sampling(**sampling), cache_salt=salt
        )
        return self.stub.Generate(request, timeout=timeout)

    async def answer(self, *arguments: Any, **sampling: Any) -> tuple[list[int], target_pb2.TargetUsage]:
        events = [event async for event in self.generate(*arguments, **sampling)]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds == ["delta"] * (len(events) - 1) + ["usage"]
        return [token for event in events[:-1] for token in event.delta.token_ids], events[-1].usage


async def serve(engine: EchoEngine, admission: Admission | None = None, *, use: bool = True) -> Target:
    servicer = TargetServicer(admission or Admission(max_running=16, max_waiting=64))
    server = GrpcServer(ServerOptions("127.0.0.1:0", drain_s=5.0), [SERVICE])
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    if use:
        servicer.use(engine)
        await server.set_serving(True)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    return Target(engine, server, channel, target_pb2_grpc.TargetServiceStub(channel))


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    served = await serve(EchoEngine())
    yield served
    await served.channel.close()
    await served.server.drain()


@pytest.fixture
async def slow() -> AsyncIterator[Target]:
    """20 ms a token; two requests run, two may wait."""
    served = await serve(EchoEngine(token_delay_s=0.02, max_running=2), Admission(max_running=2, max_waiting=2))
    yield served
    await served.channel.close()
    await served.server.drain()


async def until(holds: Callable[[], bool], within_s: float = 2.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


async def _events(call: Any) -> list[target_pb2.TargetServiceGenerateResponse]:
    return [event async for event in call]


async def test_deltas_then_exactly_one_usage(target: Target) -> None:
    tokens, usage = await target.answer(max_new_tokens=5)

    assert tokens == [5, 6, 7, 5, 6]
    assert (usage.prompt_tokens, usage.kv_tokens, usage.cached_tokens, usage.completion_tokens) == (3, 3, 0, 5)
    assert usage.finish_reason == target_pb2.FINISH_REASON_LENGTH
    assert 0.0 < usage.ttft_ms <= usage.total_ms


async def test_max_new_tokens_is_256_by_default(target: Target) -> None:
    assert (await target.answer())[1].completion_tokens == 256


async def test_eos_ends_the_answer_and_is_counted_not_delivered(target: Target) -> None:
    tokens, usage = await target.answer([5, 6, 0, 7])

    assert (tokens, usage.completion_tokens) == ([5, 6], 3)
    assert usage.finish_reason == target_pb2.FINISH_REASON_STOP


async def test_ignore_eos_goes_on(target: Target) -> None:
    assert (await target.answer([5, 0], max_new_tokens=4, ignore_eos=True))[0] == [5, 0, 5, 0]


async def test_a_stop_token_ends_the_answer(target: Target) -> None:
    assert (await target.answer(stop_token_ids=[9, 7]))[0] == [5, 6]


async def test_a_stop_string_ends_the_answer_after_the_token_that_completes_it(target: Target) -> None:
    tokens, usage = await target.answer([ord("a"), ord("b"), ord("c")], stop=["bc"])

    assert (tokens, usage.finish_reason) == ([97, 98, 99], target_pb2.FINISH_REASON_STOP)


async def test_an_answer_of_nothing_but_eos_is_one_usage(target: Target) -> None:
    tokens, usage = await target.answer([0])

    assert (tokens, usage.completion_tokens) == ([], 1)
    assert usage.ttft_ms > 0.0


async def test_a_repeated_prompt_is_cached_within_its_salt_alone(target: Target) -> None:
    first = (await target.answer(PROMPT, "tenant a", max_new_tokens=1))[1]
    again = (await target.answer([*PROMPT, 8], "tenant a", max_new_tokens=1))[1]
    other = (await target.answer(PROMPT, "tenant b", max_new_tokens=1))[1]

    assert [usage.cached_tokens for usage in (first, again, other)] == [0, 3, 0]


@pytest.mark.parametrize(
    ("token_ids", "sampling", "field", "value"),
    [
        ([], {}, "token_ids", "empty"),
        ([5, 512], {}, "token_ids", "512"),
        ([5, 2**32 - 1], {}, "token_ids", "4294967295"),
        (PROMPT, {"max_new_tokens": 0}, "sampling.max_new_tokens", "0"),
        (PROMPT, {"temperature": -0.5}, "sampling.temperature", "-0.5"),
        (PROMPT, {"temperature": 2.5}, "sampling.temperature", "2.5"),
        (PROMPT, {"temperature": float("nan")}, "sampling.temperature", "nan"),
        (PROMPT, {"top_p": 0.0}, "sampling.top_p", "0.0"),
        (PROMPT, {"top_p": 1.5}, "sampling.top_p", "1.5"),
        (PROMPT, {"top_k": 0}, "sampling.top_k", "0"),
        (PROMPT, {"stop": ["x"] * 17}, "sampling.stop", "17 strings"),
        (PROMPT, {"stop": ["x", ""]}, "sampling.stop", "an empty string"),
        (PROMPT, {"stop_token_ids": [512]}, "sampling.stop_token_ids", "512"),
    ],
)
async def test_a_bad_value_is_refused_with_field_value_and_limit(
    target: Target, token_ids: list[int], sampling: dict[str, Any], field: str, value: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await target.answer(token_ids, **sampling)

    refusal = error_of(failure.value)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert type(refusal) is errors.InvalidRequest
    assert (refusal.field, refusal.value) == (field, value)
    assert refusal.limit
    assert (await target.answer(max_new_tokens=1))[0] == [5]


async def test_prompt_plus_answer_over_the_context_is_prompt_too_long(target: Target) -> None:
    await target.answer([1] * 4000, max_new_tokens=96)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await target.answer([1] * 4000, max_new_tokens=97)

    refusal = error_of(failure.value)
    assert isinstance(refusal, errors.PromptTooLong)
    assert (refusal.field, refusal.value, refusal.limit) == ("token_ids", "4097", "4096")


async def test_stop_strings_are_refused_where_there_is_no_tokenizer() -> None:
    served = await serve(EchoEngine(can_stop_at_strings=False))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await served.answer(stop=["x"])

    assert isinstance(error_of(failure.value), errors.InvalidRequest)
    await served.channel.close()
    await served.server.drain()


async def test_garbage_is_invalid_argument(target: Target) -> None:
    call = target.channel.unary_stream(f"/{SERVICE}/Generate")(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await anext(aiter(call))

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cancelled_call_is_aborted_inside_the_engine(slow: Target) -> None:
    call = slow.generate(max_new_tokens=4000)
    await call.read()
    assert slow.engine.running_requests == 1
    call.cancel()

    await until(lambda: slow.engine.running_requests == 0)
    assert slow.engine.aborted == 1


async def test_a_passed_deadline_is_aborted_inside_the_engine(slow: Target) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await slow.answer(PROMPT, "", 0.2, max_new_tokens=4000)

    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: slow.engine.running_requests == 0)
    assert slow.engine.aborted == 1


async def test_a_cancelled_call_that_waits_frees_its_place(slow: Target) -> None:
    calls = [slow.generate(max_new_tokens=4000) for _ in range(4)]
    await until(lambda: slow.engine.running_requests == 4)
    for call in calls:
        call.cancel()

    await until(lambda: slow.engine.running_requests == 0)
    assert (await slow.answer(max_new_tokens=1))[0] == [5]


async def test_too_many_waiting_requests_are_overload_with_retry_info(slow: Target) -> None:
    calls = [slow.generate(max_new_tokens=4000) for _ in range(4)]
    await until(lambda: slow.engine.running_requests == 4)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await slow.answer(max_new_tokens=1)

    refusal = error_of(failure.value)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(refusal, errors.Overloaded)
    assert (refusal.field, refusal.value, refusal.limit) == ("waiting_requests", "2", "2")
    assert refusal.retry_after_s > 0.0
    for call in calls:
        call.cancel()


async def test_an_engine_that_dies_is_target_unavailable(slow: Target) -> None:
    call = slow.generate(max_new_tokens=4000)
    await call.read()
    slow.engine.fail("crashed")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        while True:
            await call.read()

    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error_of(failure.value), errors.TargetUnavailable)


async def test_draining_finishes_what_runs_and_refuses_what_comes(slow: Target) -> None:
    call = slow.generate(max_new_tokens=20)
    answering = asyncio.create_task(_events(call))
    await until(lambda: slow.engine.running_requests == 1)
    draining = asyncio.create_task(slow.server.drain())
    await asyncio.sleep(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await slow.answer(max_new_tokens=1)

    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (await answering)[-1].usage.completion_tokens == 20
    await draining


async def test_nothing_is_served_before_there_is_an_engine() -> None:
    served = await serve(EchoEngine(), use=False)
    health = health_pb2_grpc.HealthStub(served.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await served.answer()

    assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert isinstance(error_of(failure.value), errors.TargetUnavailable)
    await served.channel.close()
    await served.server.drain()


async def test_get_info_names_model_engine_routes_and_running_requests(slow: Target) -> None:
    call = slow.generate(max_new_tokens=4000)
    await call.read()
    info = await slow.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())

    assert (info.model.id, info.model.context_tokens, info.model.vocabulary_size) == ("echo", 4096, 512)
    assert info.engine == "echo 1"
    assert list(info.supported_routes) == [plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC]
    assert info.running_requests == 1
    call.cancel()


async def test_many_calls_at_once_keep_their_answers_apart(target: Target) -> None:
    answers = await asyncio.gather(*(target.answer([first, 6], max_new_tokens=50) for first in range(1, 41)))

    assert [tokens[:2] for tokens, _ in answers] == [[first, 6] for first in range(1, 41)]
