"""TargetService as its callers see it: a real server in this process, around an engine computable by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.core import errors
from presift.core.generation import EngineLoad, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.plan import Route
from presift.core.policies import SpecKv
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.target.__main__ import _run
from presift.target.admission import Admission
from presift.target.engine import GenerateRequest
from presift.target.servicer import TargetServicer
from presift.target.settings import TargetSettings
from presift.v1 import plan_pb2, target_pb2, target_pb2_grpc

from ...echo_engine import ECHO_KV_TOKENS, ECHO_MEMORY, EchoEngine

Start = Callable[..., Awaitable["Target"]]
SERVICE = "presift.v1.TargetService"
PROMPT = [5, 6, 7]


@dataclass
class Target:
    engine: EchoEngine
    server: GrpcServer
    channel: grpc.aio.Channel
    stub: target_pb2_grpc.TargetServiceAsyncStub

    def generate(
        self,
        token_ids: list[int] = PROMPT,
        salt: str = "",
        timeout: float = 10.0,
        kv_plan: target_pb2.KvPlan | None = None,
        **sampling: Any,
    ) -> Any:
        request = target_pb2.TargetServiceGenerateRequest(
            token_ids=token_ids, sampling=target_pb2.Sampling(**sampling), cache_salt=salt, kv_plan=kv_plan
        )
        return self.stub.Generate(request, timeout=timeout)

    async def answer(self, *arguments: Any, **sampling: Any) -> tuple[list[int], target_pb2.TargetUsage]:
        events = [event async for event in self.generate(*arguments, **sampling)]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds == ["delta"] * (len(events) - 1) + ["usage"]
        return [token for event in events[:-1] for token in event.delta.token_ids], events[-1].usage


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code(), error_of(failure.value)


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
async def start() -> AsyncIterator[Callable[..., Awaitable[Target]]]:
    """The arguments of `serve` -> its Target; all are closed at the end."""
    started: list[Target] = []

    async def start(*arguments: Any, **options: Any) -> Target:
        started.append(await serve(*arguments, **options))
        return started[-1]

    yield start
    for served in started:
        await served.channel.close()
        await served.server.drain()


@pytest.fixture
async def target(start: Start) -> Target:
    return await start(EchoEngine())


@pytest.fixture
async def slow(start: Start) -> Target:
    """20 ms a token; two requests run, two may wait."""
    return await start(EchoEngine(token_delay_s=0.02, max_running=2), Admission(max_running=2, max_waiting=2))


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


async def test_stop_strings_are_refused_where_there_is_no_tokenizer(start: Start) -> None:
    served = await start(EchoEngine(can_stop_at_strings=False))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await served.answer(stop=["x"])

    assert isinstance(error_of(failure.value), errors.InvalidRequest)


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
    assert (refusal.field, refusal.value, refusal.limit) == ("waiting_requests", "3", "<= 2")
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


async def test_nothing_is_served_before_there_is_an_engine(start: Start) -> None:
    served = await start(EchoEngine(), use=False)
    health = health_pb2_grpc.HealthStub(served.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await served.answer()

    assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert isinstance(error_of(failure.value), errors.TargetUnavailable)


async def test_get_info_names_model_engine_routes_and_running_requests(slow: Target) -> None:
    call = slow.generate(max_new_tokens=4000)
    await call.read()
    info = await slow.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())

    assert (info.model.id, info.model.context_tokens, info.model.vocabulary_size) == ("echo", 4096, 512)
    assert info.engine == "echo 1"
    assert list(info.supported_routes) == plan_pb2.Route.values()[2:]
    assert (list(info.unsupported_routes), info.kv_page_tokens, info.kv_pool_tokens) == ([], 1, 0)
    assert info.running_requests == 1
    call.cancel()


async def test_many_calls_at_once_keep_their_answers_apart(target: Target) -> None:
    answers = await asyncio.gather(*(target.answer([first, 6], max_new_tokens=50) for first in range(1, 41)))

    assert [tokens[:2] for tokens, _ in answers] == [[first, 6] for first in range(1, 41)]


# What a KV plan does, on 20 tokens of which it keeps 8: the first five and the window.
LONG = list(range(1, 21))
POLICY = plan_pb2.SpecKv(capacity=8, window=3, lookahead_tokens=2)


def kv_plan(policy: dict[str, Any] | None = None, **others: Any) -> target_pb2.KvPlan:
    changed = plan_pb2.SpecKv()
    changed.MergeFrom(POLICY)
    changed.MergeFrom(plan_pb2.SpecKv(**policy or {}))
    return target_pb2.KvPlan(**{"policy": changed, "lookahead_token_ids": [50, 51]} | others)


def kv_mask(tokens: list[int], layers: int = 1, prompt_tokens: int = len(LONG)) -> plan_pb2.KvMask:
    bits = sum(1 << token for token in tokens).to_bytes((prompt_tokens + 7) // 8, "little")
    return plan_pb2.KvMask(layers=layers, kv_heads=1, prompt_tokens=prompt_tokens, kept=bits * layers)


def masked(tokens: list[int], **shape: int) -> target_pb2.KvPlan:
    policy = {"selection": plan_pb2.KV_SELECTION_DRAFT_MASK}
    return kv_plan(policy, lookahead_token_ids=[], kv_mask=kv_mask(tokens, **shape))


async def test_a_kv_plan_is_applied_and_reported_in_the_usage(target: Target) -> None:
    tokens, usage = await target.answer(LONG, kv_plan=kv_plan(), max_new_tokens=3)

    assert tokens == [1, 2, 3]
    assert (usage.prompt_tokens, usage.kv_tokens, usage.cached_tokens, usage.completion_tokens) == (20, 9, 0, 3)
    assert (usage.reused_entry, usage.score_ms, usage.publish_ms) == (False, 20.0, 8.0)
    assert usage.coverage == pytest.approx(8 / 19)
    assert not usage.HasField("kv_mask")


async def test_the_same_plan_and_prompt_again_reuses_the_entry_within_its_salt(target: Target) -> None:
    async def again(prompt: list[int], salt: str, plan: target_pb2.KvPlan) -> tuple[bool, int]:
        usage = (await target.answer(prompt, salt, kv_plan=plan, max_new_tokens=1))[1]
        assert usage.HasField("coverage")
        return usage.reused_entry, usage.cached_tokens

    assert await again(LONG, "a", kv_plan()) == (False, 0)
    assert await again(LONG, "a", kv_plan(report_kept=True)) == (True, 8)
    assert await again(LONG, "b", kv_plan()) == (False, 0)
    assert await again(LONG, "a", kv_plan(lookahead_token_ids=[50])) == (False, 19)
    assert await again([*LONG, 30], "a", kv_plan(prompt_tokens=20)) == (True, 8)


async def test_what_follows_the_plans_prompt_is_held_in_full(target: Target) -> None:
    usage = (await target.answer([*LONG, 30, 31], kv_plan=kv_plan(prompt_tokens=20), max_new_tokens=1))[1]

    assert (usage.prompt_tokens, usage.kv_tokens) == (22, 11)


async def test_the_kept_kv_is_reported_on_request(target: Target) -> None:
    first = (await target.answer(LONG, kv_plan=kv_plan(report_kept=True), max_new_tokens=1))[1]
    reused = (await target.answer(LONG, kv_plan=kv_plan(report_kept=True), max_new_tokens=1))[1]

    assert first.kv_mask == kv_mask([0, 1, 2, 3, 4, 16, 17, 18, 19])
    assert reused.reused_entry and not reused.HasField("kv_mask")


async def test_a_draft_mask_is_applied_without_scoring(target: Target) -> None:
    usage = (await target.answer(LONG, kv_plan=masked([2, 16, 17, 18]), max_new_tokens=1))[1]

    assert (usage.kv_tokens, usage.score_ms) == (5, 0.0)
    assert not usage.HasField("coverage")


async def test_a_prompt_that_fits_is_an_ordinary_one(target: Target) -> None:
    for cached in (0, 7):
        usage = (await target.answer(LONG[:8], kv_plan=kv_plan(), max_new_tokens=1))[1]
        assert (usage.kv_tokens, usage.cached_tokens, usage.reused_entry) == (8, cached, False)


@pytest.mark.parametrize("keep", [True, False])
async def test_the_full_prefix_stays_cached_if_it_is_to_be_kept(target: Target, keep: bool) -> None:
    await target.answer(LONG, kv_plan=kv_plan(keep_full_prefix=keep), max_new_tokens=1)
    usage = (await target.answer([*LONG, 30], max_new_tokens=1))[1]

    assert usage.cached_tokens == (20 if keep else 0)


# One that each of policy, plan and model refuses. The others: tests/unit/core, tests/unit/target/test_admission.py.
BAD_PLANS: dict[str, tuple[target_pb2.KvPlan, str, str]] = {
    "empty": (target_pb2.KvPlan(), "spec_kv.capacity", "0"),
    "long lookahead": (kv_plan(lookahead_token_ids=[1, 2, 3]), "kv_plan.lookahead_token_ids", "3 tokens"),
    "mask of another model": (masked([16, 17, 18], layers=2), "kv_plan.kv_mask", "shape (2, 1, 20)"),
}


@pytest.mark.parametrize(("plan", "field", "value"), BAD_PLANS.values(), ids=BAD_PLANS)
async def test_a_bad_kv_plan_is_refused(target: Target, plan: target_pb2.KvPlan, field: str, value: str) -> None:
    status, refusal = await refusal_of(target.answer(LONG, kv_plan=plan))

    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert type(refusal) is errors.InvalidRequest
    assert (refusal.field, refusal.value) == (field, value)
    assert refusal.limit


async def test_protected_spans_over_the_capacity_are_budget_exceeded(target: Target) -> None:
    plan = kv_plan(protected_spans=[plan_pb2.Span(start=0, end=6)])
    status, refusal = await refusal_of(target.answer(LONG, kv_plan=plan))

    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(refusal, errors.BudgetExceeded)
    assert (refusal.field, refusal.value) == ("protected_spans", "9")


async def test_an_engine_that_drops_no_kv_says_why(start: Start) -> None:
    served = await start(EchoEngine(no_kv_dropping="the canary failed"))
    status, refusal = await refusal_of(served.answer(LONG, kv_plan=kv_plan()))
    info = await served.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())

    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(refusal, errors.RouteUnsupported)
    assert "the canary failed" in refusal.message
    assert list(info.supported_routes) == [plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC]
    reasons = [(each.route, each.reason) for each in info.unsupported_routes]
    assert reasons == [(plan_pb2.ROUTE_SPEC_KV, "the canary failed"), (plan_pb2.ROUTE_SPEC_KV_PC, "the canary failed")]
    assert (await served.answer(max_new_tokens=1))[0] == [5]


async def test_pages_round_the_capacity_and_are_reported(start: Start) -> None:
    served = await start(EchoEngine(kv_page_tokens=5))
    usage = (await served.answer(LONG, kv_plan=kv_plan(), max_new_tokens=1))[1]
    info = await served.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())

    assert (usage.kv_tokens, info.kv_page_tokens) == (6, 5)


async def test_the_engines_pool_is_reported(start: Start) -> None:
    engine = EchoEngine()
    engine._info = replace(engine.info, kv_pool_tokens=4096)
    served = await start(engine)
    info = await served.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())

    assert info.kv_pool_tokens == 4096


async def test_a_prefilled_prompt_is_found_by_a_later_one_of_its_salt(target: Target) -> None:
    for cached in (0, 19):
        reply = await target.stub.Prefill(target_pb2.PrefillRequest(token_ids=LONG, cache_salt="a"))
        assert reply.cached_tokens == cached
        assert reply.total_ms > 0.0
    ordinary = (await target.answer([*LONG, 30], "a", max_new_tokens=1))[1]
    compressed = (await target.answer(LONG, "a", kv_plan=kv_plan(), max_new_tokens=1))[1]
    other = (await target.answer(LONG, "b", kv_plan=kv_plan(), max_new_tokens=1))[1]

    assert [usage.cached_tokens for usage in (ordinary, compressed, other)] == [20, 19, 0]


@pytest.mark.parametrize(("token_ids", "value"), [([], "empty"), ([5, 512], "512")])
async def test_a_bad_prefill_is_refused(target: Target, token_ids: list[int], value: str) -> None:
    status, refusal = await refusal_of(target.stub.Prefill(target_pb2.PrefillRequest(token_ids=token_ids)))

    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert (refusal.field, refusal.value) == ("token_ids", value)


async def test_a_prefill_waits_for_its_place_and_is_aborted_when_it_is_cancelled(slow: Target) -> None:
    calls = [slow.generate(max_new_tokens=4000) for _ in range(3)]
    await until(lambda: slow.engine.running_requests == 3)
    waiting = slow.stub.Prefill(target_pb2.PrefillRequest(token_ids=LONG))
    await until(lambda: slow.engine.running_requests == 4)
    status, _ = await refusal_of(slow.stub.Prefill(target_pb2.PrefillRequest(token_ids=LONG)))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    waiting.cancel()

    await until(lambda: slow.engine.running_requests == 3)
    for call in calls:
        call.cancel()


async def test_a_prefill_of_a_dead_or_missing_engine_is_target_unavailable(target: Target, start: Start) -> None:
    target.engine.fail("crashed")
    starting = await start(EchoEngine(), use=False)
    for served in (target, starting):
        status, refusal = await refusal_of(served.stub.Prefill(target_pb2.PrefillRequest(token_ids=LONG)))
        assert status is grpc.StatusCode.UNAVAILABLE
        assert isinstance(refusal, errors.TargetUnavailable)


@pytest.mark.parametrize("reason", [None, "the canary failed"])
async def test_health_reports_which_routes_are_served(reason: str | None) -> None:
    settings = TargetSettings(_cli_parse_args=False, model="echo", listen="127.0.0.1:0")  # type: ignore[call-arg]
    names = ["", SERVICE, *(f"{SERVICE}/{route}" for route in Route)]
    server = GrpcServer(ServerOptions("127.0.0.1:0"), [SERVICE], names[2:])
    servicer, engine = TargetServicer(Admission(max_running=1, max_waiting=1)), EchoEngine(no_kv_dropping=reason)
    port = await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    health = health_pb2_grpc.HealthStub(channel)

    async def serving() -> list[bool]:
        replies = [await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in names]
        return [reply.status == health_pb2.HealthCheckResponse.SERVING for reply in replies]

    assert await serving() == [False] * 6
    running = asyncio.create_task(_run(settings, engine, servicer, server, port))
    async with asyncio.timeout(60):
        while not (await serving())[3]:
            await asyncio.sleep(0.01)
    assert await serving() == [True, True, True, True, reason is None, reason is None]
    running.cancel()
    await channel.close()
    await server.drain()


async def test_a_target_says_which_replica_it_is(target: Target, start: Start) -> None:
    info = await target.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())
    usages = [(await target.answer())[1] for _ in range(2)]
    other = await start(EchoEngine())
    (_, elsewhere) = await other.answer()
    assert {info.replica} == {usage.replica for usage in usages} != {elsewhere.replica} and len(info.replica) == 32


async def test_info_and_usage_report_the_load(start: Start) -> None:
    served = await start(EchoEngine(max_running=1, token_delay_s=0.01))
    calm = (await served.answer(max_new_tokens=1))[1].load
    assert (calm.running, calm.waiting, calm.free_kv_tokens) == (1, 0, ECHO_KV_TOKENS - len(PROMPT))
    calls = [served.generate(LONG, max_new_tokens=10_000 // 4, ignore_eos=True) for _ in range(3)]
    await until(lambda: served.engine.running_requests == 3)
    servicer_load = served.engine.load()
    assert (servicer_load.running, servicer_load.waiting) == (1, 2)
    assert servicer_load.free_kv_tokens == ECHO_KV_TOKENS - len(LONG)
    for call in calls:
        call.cancel()
    await until(lambda: served.engine.running_requests == 0)
    assert served.engine.load() == EngineLoad(0, 0, ECHO_KV_TOKENS)
    info = await served.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())
    assert info.HasField("load")


async def test_a_load_that_cannot_be_seen_is_left_out(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> EngineLoad:
        raise OSError("no shared memory")

    monkeypatch.setattr(target.engine, "load", broken)
    token_ids, usage = await target.answer(max_new_tokens=1)
    assert token_ids == [5] and usage.replica and not usage.HasField("load")


async def test_the_echo_engine_may_run_for_days() -> None:
    engine = EchoEngine()
    for first in range(ECHO_MEMORY + 40):
        prompt = np.array([first + 1, 7, 8], dtype=np.uint32)
        plan = KvPlan(SpecKv(capacity=2, window=1, kernel=1), lookahead_token_ids=(1,))
        async for _ in engine.generate(GenerateRequest(prompt, Sampling(max_new_tokens=1), kv_plan=plan)):
            pass
    assert len(engine._seen[""]) == len(engine._entries) == ECHO_MEMORY


TOOL = '{"type": "function", "function": {"name": "search"}}'
ANSWER = 'THINK hm\nhi\nCALL search {"a": 1}\n'


async def parsed(served: Target, text: str, wanted: target_pb2.AnswerFormat, **sampling: Any) -> list[Any]:
    """The events of an answer that is `text`."""
    request = target_pb2.TargetServiceGenerateRequest(
        token_ids=[*map(ord, text), 0], sampling=target_pb2.Sampling(max_new_tokens=99, **sampling), format=wanted
    )
    return [event async for event in served.stub.Generate(request, timeout=10)]


async def test_a_format_separates_the_parts_of_an_answer(start: Start) -> None:
    served = await start(EchoEngine(has_parsers=True))
    *deltas, end = await parsed(
        served, ANSWER, target_pb2.AnswerFormat(tools_json=[TOOL], separate_reasoning=True), top_logprobs=1
    )
    texts = [event.delta.parsed for event in deltas]
    calls = [call for text in texts for call in text.tool_calls]
    assert "".join(text.content for text in texts) == "hi\n"
    assert "".join(text.reasoning for text in texts) == "hm"
    assert [(call.index, call.id, call.name) for call in calls] == [(0, "call_0", "search"), (0, "", "")]
    assert "".join(call.arguments for call in calls) == '{"a": 1}'
    assert end.usage.finish_reason == target_pb2.FINISH_REASON_TOOL_CALLS
    logprobs = [each for event in deltas for each in event.delta.logprobs]
    assert [each.token_id for each in logprobs] == list(map(ord, ANSWER))
    assert [(top.token_id, top.logprob) for top in logprobs[0].top] == [(ord("T"), 0.0)]


async def test_without_a_format_nothing_is_separated(start: Start) -> None:
    served = await start(EchoEngine(has_parsers=True))
    events = [event async for event in served.generate([*map(ord, ANSWER), 0], max_new_tokens=99)]
    assert not any(event.delta.HasField("parsed") or event.delta.logprobs for event in events[:-1])
    assert events[-1].usage.finish_reason == target_pb2.FINISH_REASON_STOP


@pytest.mark.parametrize(
    ("wanted", "sampling", "field"),
    [
        ({"tools_json": [TOOL], "tool_choice": target_pb2.TOOL_CHOICE_REQUIRED}, {}, "tool_choice"),
        ({"tools_json": [TOOL]}, {}, "format.tools_json"),
        ({"separate_reasoning": True}, {}, "format.separate_reasoning"),
        ({}, {"json_schema": "{}"}, "sampling.json_schema"),
    ],
)
async def test_an_engine_without_parsers_refuses_a_format(
    start: Start, wanted: dict[str, Any], sampling: dict[str, Any], field: str
) -> None:
    served = await start(EchoEngine())
    code, error = await refusal_of(parsed(served, "hi", target_pb2.AnswerFormat(**wanted), **sampling))
    assert (code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


@pytest.mark.parametrize("has_parsers", [True, False])
async def test_the_info_says_what_can_be_separated(start: Start, has_parsers: bool) -> None:
    served = await start(EchoEngine(has_parsers=has_parsers))
    info = await served.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())
    expected = ("echo", "echo", True) if has_parsers else ("", "", False)
    assert (info.tool_call_parser, info.reasoning_parser, info.grammars) == expected
