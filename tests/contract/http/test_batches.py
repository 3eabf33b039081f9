"""Several prompts and several answers through the whole pipeline: bounded, in order, and ended together."""

import asyncio
import json

import openai
import pytest

from presift.core.errors import TargetUnavailable
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.api.http import batches
from presift.orchestrator.domain.caller import TenantLimits
from presift.orchestrator.domain.request import Request, Text

from ..fakes.http_api import MODEL
from ..fakes.services import raises

PROMPTS = [f"{letter}bcdef" for letter in "abcdefghijklmnopqrst"]


@pytest.fixture
async def api(open_stack, open_http_api):
    return await open_http_api(await open_stack())


async def test_answers_are_in_the_order_of_their_prompts(api):
    answer = await api.client.completions.create(model=MODEL, prompt=PROMPTS, max_tokens=6)
    assert [choice.text for choice in answer.choices] == [prompt[::-1] for prompt in PROMPTS]
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == 6 * len(PROMPTS)
    assert len(api.stack.target.calls) == len(PROMPTS)


async def test_several_answers_to_several_prompts(api):
    answer = await api.client.completions.create(model=MODEL, prompt=PROMPTS[:3], n=2, max_tokens=6, seed=5)
    assert [choice.text for choice in answer.choices] == [prompt[::-1] for prompt in PROMPTS[:3] for _ in range(2)]
    assert sorted(call.sampling.seed for call in api.stack.target.calls) == [5, 5, 5, 6, 6, 6]
    assert answer.usage.prompt_tokens == 18 and answer.usage.completion_tokens == 36


async def test_a_batch_takes_a_bounded_number_of_places(api, monkeypatch):
    monkeypatch.setattr(batches, "MOST_AT_ONCE", 3)
    api.stack.target.pause_after = 1
    running = asyncio.create_task(api.client.completions.create(model=MODEL, prompt=PROMPTS, max_tokens=6))
    await api.stack.settle(lambda: api.stack.target.running >= 3)
    await asyncio.sleep(0.05)
    assert api.stack.target.running == 3
    api.stack.target.gate.set()
    assert len((await running).choices) == len(PROMPTS)


def test_a_batch_is_no_more_than_its_tenant_may_have():
    assert batches._most_at_once([Request(Text("a"), limits=TenantLimits(concurrency=2))]) == 2
    assert batches._most_at_once([Request(Text("a"))]) == batches.MOST_AT_ONCE


async def test_a_disconnect_ends_all_requests_of_a_batch(api):
    api.stack.target.pause_after = 1
    body = {"model": MODEL, "prompt": PROMPTS, "max_tokens": 6, "stream": True}
    async with api.http.stream("POST", "/v1/completions", json=body) as stream:
        async for line in stream.aiter_lines():
            if line:
                assert json.loads(line.removeprefix("data: "))["choices"]
                await api.stack.settle(lambda: api.stack.target.running == batches.MOST_AT_ONCE)
                break
    await api.stack.settle(lambda: api.stack.target.running == 0 and api.stack.admission.running == 0)
    assert len(api.stack.target.calls) <= batches.MOST_AT_ONCE == api.stack.target.cancelled


async def test_one_error_ends_all_requests_of_a_batch(api):
    api.stack.target.pause_after = 1
    running = asyncio.create_task(api.client.completions.create(model=MODEL, prompt=PROMPTS[:4], max_tokens=6))
    await api.stack.settle(lambda: api.stack.target.running == 4)
    api.stack.target.faults.extend([raises(TargetUnavailable("gone"))] * 10)
    with pytest.raises(openai.InternalServerError):
        await api.client.completions.create(model=MODEL, prompt=PROMPTS[:4], max_tokens=6)
    assert api.stack.target.running == 4
    api.stack.target.gate.set()
    await running


async def test_one_deadline_for_the_whole_batch(api):
    api.stack.target.pause_after = 1
    with pytest.raises(openai.APIStatusError) as late:
        await api.client.completions.create(
            model=MODEL, prompt=PROMPTS, max_tokens=6, extra_body={"presift": {"timeout_s": 0.2}}
        )
    assert late.value.code == "deadline_exceeded"
    await api.stack.settle(lambda: api.stack.target.running == 0)


async def test_a_full_server_refuses_the_batch(open_stack, open_http_api):
    stack = await open_stack(limits=QueueLimits(max_running=1, max_waiting=0))
    api = await open_http_api(stack)
    with pytest.raises(openai.RateLimitError):
        await api.client.completions.create(model=MODEL, prompt=PROMPTS, max_tokens=6)
    await stack.settle(lambda: stack.target.running == 0)
