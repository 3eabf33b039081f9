"""TargetService over the real SGLang engine, on a tiny model of random weights in float32."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from presift.core import errors
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.target.sglang.engine import SglangEngine
from presift.v1 import plan_pb2, target_pb2, target_pb2_grpc

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang"),
]

POOL_TOKENS = 8192
VOCABULARY = 512


@dataclass
class Target:
    engine: SglangEngine
    stub: target_pb2_grpc.TargetServiceAsyncStub

    def generate(self, token_ids: list[int], salt: str = "", timeout: float = 120.0, **sampling: Any) -> Any:
        request = target_pb2.TargetServiceGenerateRequest(
            token_ids=token_ids, sampling=target_pb2.Sampling(**sampling), cache_salt=salt
        )
        return self.stub.Generate(request, timeout=timeout)

    async def answer(
        self, token_ids: list[int], salt: str = "", **sampling: Any
    ) -> tuple[list[int], target_pb2.TargetUsage]:
        events = [event async for event in self.generate(token_ids, salt, **sampling)]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds == ["delta"] * (len(events) - 1) + ["usage"]
        return [token for event in events[:-1] for token in event.delta.token_ids], events[-1].usage

    def load(self) -> tuple[int, int, int]:
        """Running requests, waiting requests, KV slots in use."""
        load = self.engine.load()
        assert load
        return load.running, load.waiting, load.held_kv_tokens

    async def idle(self) -> None:
        """Wait until the scheduler process itself says that nothing runs, waits or holds KV slots."""
        async with asyncio.timeout(20):
            while any(self.load()) or self.engine.running_requests:
                await asyncio.sleep(0.02)

    async def busy(self, requests: int) -> None:
        async with asyncio.timeout(60):
            while sum(self.load()[:2]) < requests:
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target(start: Any) -> AsyncIterator[Target]:
    # Prompts of a few hundred tokens are read in several chunks. The other tests' prompts leave the cache.
    driver = await start()
    await driver.empty()
    async with serving(driver.engine) as served:
        yield served
    await driver.empty()


@asynccontextmanager
async def serving(engine: SglangEngine) -> AsyncIterator[Target]:
    server, servicer = GrpcServer(ServerOptions("127.0.0.1:0"), []), TargetServicer(Admission(16, 64))
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    servicer.use(engine)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Target(engine, target_pb2_grpc.TargetServiceStub(channel))
    await server.grpc.stop(0)


@pytest.fixture(scope="module")
def expected(tiny_model: Callable[[str], Path]) -> Callable[[list[int], int], list[int]]:
    """(prompt, new tokens) -> what transformers generates greedily."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("tinyq"), dtype=torch.float32).eval()

    def generate(prompt: list[int], new_tokens: int) -> list[int]:
        with torch.inference_mode():
            out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=new_tokens)
        return out[0, len(prompt) :].tolist()

    return generate


def prompt(seed: int, tokens: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, tokens).tolist()


@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 129, 700])
async def test_greedy_equals_transformers(
    target: Target, expected: Callable[[list[int], int], list[int]], tokens: int
) -> None:
    ids = prompt(tokens, tokens)
    answer, usage = await target.answer(ids, max_new_tokens=24)

    assert answer == expected(ids, 24)
    assert (usage.prompt_tokens, usage.completion_tokens) == (tokens, 24)
    assert usage.finish_reason == target_pb2.FINISH_REASON_LENGTH


async def test_the_same_prompt_again_is_read_from_the_cache(
    target: Target, expected: Callable[[list[int], int], list[int]]
) -> None:
    ids = prompt(1000, 300)
    first, again = [await target.answer(ids, max_new_tokens=8) for _ in range(2)]
    longer = await target.answer(ids + prompt(1001, 50), max_new_tokens=8)

    assert (first[1].cached_tokens, again[1].cached_tokens, longer[1].cached_tokens) == (0, 299, 300)
    assert first[0] == again[0] == expected(ids, 8)
    assert longer[0] == expected(ids + prompt(1001, 50), 8)


async def test_salts_share_nothing(target: Target) -> None:
    ids = prompt(1100, 200)
    usages = [(await target.answer(ids, salt, max_new_tokens=4))[1] for salt in ("", "a", "b", "a", "b", "")]

    assert [usage.cached_tokens for usage in usages] == [0, 0, 0, 199, 199, 199]


async def test_eight_different_prompts_at_once(target: Target, expected: Callable[[list[int], int], list[int]]) -> None:
    prompts = [prompt(2000 + i, 40 + 37 * i) for i in range(8)]
    answers = await asyncio.gather(*(target.answer(ids, max_new_tokens=16) for ids in prompts))

    assert [answer for answer, _ in answers] == [expected(ids, 16) for ids in prompts]


async def test_seeded_sampling_is_repeatable_alone_and_among_others(target: Target) -> None:
    ids = prompt(3000, 30)
    sampling = {"temperature": 1.5, "top_p": 0.95, "top_k": 200, "max_new_tokens": 24}
    alone = (await target.answer(ids, seed=2**64 - 1, **sampling))[0]
    others = [target.answer(ids, seed=seed, **sampling) for seed in range(4)]
    among = await asyncio.gather(target.answer(ids, seed=2**64 - 1, **sampling), *others)
    unseeded = [(await target.answer(ids, **sampling))[0] for _ in range(2)]

    assert among[0][0] == alone
    assert len({tuple(answer) for answer, _ in among}) == 5
    assert unseeded[0] != unseeded[1]


async def test_top_k_of_one_is_greedy(target: Target, expected: Callable[[list[int], int], list[int]]) -> None:
    ids = prompt(3100, 30)
    assert (await target.answer(ids, temperature=2.0, top_k=1, max_new_tokens=12))[0] == expected(ids, 12)


async def test_a_stop_token_ends_the_answer(target: Target, expected: Callable[[list[int], int], list[int]]) -> None:
    ids = prompt(3200, 30)
    full = expected(ids, 24)
    stop = next(token for token in full[3:] if full.index(token) >= 3)
    answer, usage = await target.answer(ids, max_new_tokens=24, stop_token_ids=[stop])

    assert answer == full[: full.index(stop)]
    assert usage.completion_tokens == len(answer) + 1
    assert usage.finish_reason == target_pb2.FINISH_REASON_STOP


async def test_tokens_arrive_as_they_are_made(target: Target) -> None:
    events = [event async for event in target.generate(prompt(3300, 20), max_new_tokens=32)]

    usage = events[-1].usage
    assert len(events) > 8
    assert usage.ttft_ms < usage.total_ms / 2


async def test_a_cancelled_call_leaves_the_scheduler_and_its_slots_free(target: Target) -> None:
    await target.idle()
    calls = [target.generate(prompt(4000 + i, 100), max_new_tokens=2000) for i in range(3)]
    for call in calls:
        await call.read()
    await target.busy(3)
    assert target.load()[2] >= 300
    assert (await target.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())).running_requests == 3
    for call in calls:
        call.cancel()

    await target.idle()


async def test_a_passed_deadline_leaves_the_scheduler_and_its_slots_free(target: Target) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for _ in target.generate(prompt(4100, 100), "", 1.0, max_new_tokens=3900):
            pass

    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await target.idle()


async def test_a_call_cancelled_while_its_prompt_is_read_is_aborted(target: Target) -> None:
    calls = [target.generate(prompt(4200 + i, 3000), max_new_tokens=500) for i in range(2)]
    await asyncio.sleep(0.1)
    for call in calls:
        call.cancel()

    await target.idle()


async def test_the_whole_context_can_be_used_and_no_more(target: Target) -> None:
    context = (await target.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())).model.context_tokens
    ids = prompt(5000, context - 20)
    usage = (await target.answer(ids, max_new_tokens=20))[1]
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await target.answer(ids, max_new_tokens=21)

    assert usage.completion_tokens == 20
    refusal = error_of(failure.value)
    assert isinstance(refusal, errors.PromptTooLong)
    assert refusal.limit == str(context)


async def test_more_prompts_than_the_pool_holds_wait_their_turn(
    target: Target, expected: Callable[[list[int], int], list[int]]
) -> None:
    prompts = [prompt(6000 + i, 1500) for i in range(8)]
    assert sum(map(len, prompts)) > POOL_TOKENS
    answers = await asyncio.gather(*(target.answer(ids, max_new_tokens=6) for ids in prompts))

    assert [answer for answer, _ in answers] == [expected(ids, 6) for ids in prompts]


async def test_stop_strings_are_refused_without_a_tokenizer(target: Target) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await target.answer([1, 2], stop=["x"])

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_get_info_describes_the_model(target: Target) -> None:
    info = await target.stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())

    assert info.engine == f"sglang {version('sglang')}"
    assert (info.model.id, info.model.layers, info.model.kv_heads) == ("tinyq", 4, 2)
    assert info.model.vocabulary_size == VOCABULARY
    assert info.model.tokenizer_fingerprint == ""
    assert 4000 < info.model.context_tokens <= 4096
    assert list(info.supported_routes) == [
        plan_pb2.ROUTE_FULL,
        plan_pb2.ROUTE_SPEC_PC,
        plan_pb2.ROUTE_SPEC_KV,
        plan_pb2.ROUTE_SPEC_KV_PC,
    ]
    assert not info.unsupported_routes
    assert info.kv_pool_tokens == POOL_TOKENS
