"""Several answers to one prompt: one plan, one read of the prompt, one stream."""

import asyncio
from collections import Counter

import grpc
import pytest

from presift.core.errors import Overloaded
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.pipeline import answer_streams
from presift.v1 import plan_pb2

from ..fakes.services import model, raises
from ..fakes.stack import ALL_ROUTES, request

LONG = list(range(100, 200))


async def answers(stack, prompt, choices, **options):
    """The events of a request for several choices: the decision, the token ids by choice, the usages by choice."""
    events = [event async for event in stack.stub.Generate(request(prompt, choices=choices, **options))]
    assert events[0].WhichOneof("event") == "decision"
    ids, usages = {number: [] for number in range(choices)}, {}
    for event in events[1:]:
        if event.WhichOneof("event") == "usage":
            assert event.usage.choice not in usages
            usages[event.usage.choice] = event.usage
        else:
            assert event.delta.choice not in usages  # nothing after its usage
            ids[event.delta.choice] += event.delta.token_ids
    return events[0].decision, ids, [usages[number] for number in range(choices)]


async def test_each_choice_has_its_deltas_and_its_usage(stack):
    decision, ids, usages = await answers(stack, [5, 6, 7], 3)
    assert decision.prompt_tokens == 3
    assert ids == {0: [7, 6, 5], 1: [7, 6, 5], 2: [7, 6, 5]}
    assert [usage.completion_tokens for usage in usages] == [3, 3, 3]
    assert len(stack.target.calls) == 3


async def test_one_choice_is_one_call(stack):
    _, ids, (usage,) = await answers(stack, [5, 6], 1)
    assert ids == {0: [6, 5]} and usage.choice == 0 and len(stack.target.calls) == 1


async def test_the_draft_works_once_and_all_read_the_same(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)
    await answers(stack, LONG, 4, route=plan_pb2.ROUTE_SPEC_KV)
    assert len(stack.draft.calls) == 1
    first, *others = stack.target.calls
    assert first.HasField("kv_plan") and all(other == first for other in others) and len(others) == 3


async def test_the_others_begin_when_the_first_has_its_first_token(stack):
    first_token = asyncio.Event()

    async def waits(context):
        await first_token.wait()

    stack.target.faults.append(waits)
    call = stack.stub.Generate(request([1, 2, 3], choices=4))
    assert (await call.read()).WhichOneof("event") == "decision"
    await stack.settle(lambda: len(stack.target.calls) == 1)
    await asyncio.sleep(0.05)
    assert len(stack.target.calls) == 1
    first_token.set()
    await stack.settle(lambda: len(stack.target.calls) == 4)
    call.cancel()


async def test_they_run_side_by_side(stack):
    stack.target.pause_after = 1
    call = stack.stub.Generate(request([1, 2, 3], choices=3))
    await stack.settle(lambda: stack.target.running == 3)
    stack.target.gate.set()
    kinds = Counter([event.WhichOneof("event") async for event in call])
    assert kinds == {"decision": 1, "delta": 9, "usage": 3}


async def test_more_than_a_target_takes_run_in_turn(stack, monkeypatch):
    monkeypatch.setattr(answer_streams, "_AT_ONCE", 2)
    stack.target.pause_after = 1
    asked = asyncio.create_task(answers(stack, [1, 2, 3], 5))
    await stack.settle(lambda: stack.target.running == 3)  # the first one, and two
    await asyncio.sleep(0.05)
    assert len(stack.target.calls) == 3
    stack.target.gate.set()
    _, ids, usages = await asked
    assert all(each == [3, 2, 1] for each in ids.values()) and len(usages) == len(stack.target.calls) == 5


async def test_those_that_wait_for_their_turn_end_with_the_others(stack, monkeypatch):
    monkeypatch.setattr(answer_streams, "_AT_ONCE", 1)
    stack.target.pause_after = 1
    call = stack.stub.Generate(request([1, 2, 3], choices=5))
    await stack.settle(lambda: stack.target.running == 2)
    call.cancel()
    await stack.settle(lambda: stack.target.running == 0)
    await asyncio.sleep(0.05)
    assert len(stack.target.calls) == 2


async def test_each_choice_has_a_seed_of_its_own(stack):
    await answers(stack, [1, 2], 3, sampling={"seed": 2**64 - 2, "temperature": 1.0})
    assert sorted(each.sampling.seed for each in stack.target.calls) == [0, 2**64 - 2, 2**64 - 1]
    stack.target.calls.clear()
    await answers(stack, [1, 2], 2)
    assert not any(each.sampling.HasField("seed") for each in stack.target.calls)


async def test_prompt_logprobs_are_asked_for_once(stack):
    await answers(stack, [1, 2], 3, sampling={"top_logprobs": 0, "prompt_logprobs": True})
    assert [each.sampling.prompt_logprobs for each in stack.target.calls] == [True, False, False]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_failure_of_one_ends_all(stack, place):
    stack.target.pause_after = 1
    gates = [asyncio.Event() for _ in range(3)]

    def waits(number):
        async def fault(context):
            await gates[number].wait()
            await raises(Overloaded("requests", 9, 8, 7.0))(context)

        return fault

    async def passes(context):
        pass

    stack.target.faults += [waits(number) if number == place else passes for number in range(3)]
    call = stack.stub.Generate(request([1, 2, 3], choices=3), timeout=20)
    await stack.settle(lambda: stack.target.running == (1 if place == 0 else 3))
    gates[place].set()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        [event async for event in call]
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await stack.settle(lambda: stack.target.running == 0)
    assert len(stack.target.calls) == (1 if place == 0 else 3)  # after a failure of the first, no other begins


async def test_a_caller_who_leaves_ends_all(stack):
    stack.target.pause_after = 1
    call = stack.stub.Generate(request([1, 2, 3], choices=5))
    await stack.settle(lambda: stack.target.running == 5)
    call.cancel()
    await stack.settle(lambda: stack.target.running == 0 and stack.admission.running == 0)
    assert stack.target.cancelled == 5


async def test_the_slot_ends_with_the_last_choice(open_stack):
    stack = await open_stack(limits=QueueLimits(max_running=1))
    stack.target.pause_after = 1
    call = stack.stub.Generate(request([1, 2, 3], choices=2))
    await stack.settle(lambda: stack.target.running == 2)
    assert stack.admission.running == 1
    stack.target.gate.set()
    await stack.settle(lambda: stack.target.running == 0)
    await stack.settle(lambda: stack.admission.running == 0)  # although nobody has read the answers
    assert len([event async for event in call if event.WhichOneof("event") == "usage"]) == 2


async def test_a_slow_reader_gets_every_token(open_stack):
    stack = await open_stack(target=model("target", context_tokens=20_000), routes=(plan_pb2.ROUTE_FULL,))
    prompt, choices = [7] * 3000, 8
    call = stack.stub.Generate(request(prompt, choices=choices, max_new_tokens=3000))
    await stack.settle(lambda: len(stack.target.calls) == choices and not stack.target.running)
    ids = Counter()
    async for event in call:
        ids[event.delta.choice] += len(event.delta.token_ids)
    assert ids == dict.fromkeys(range(choices), 3000)


async def test_only_the_first_is_learned_from(stack, monkeypatch):
    observed = []
    monkeypatch.setattr(stack.estimator, "observe", observed.append)
    await answers(stack, [1, 2, 3], 4)
    assert len(observed) == 1


@pytest.mark.parametrize(("choices", "message"), [(0, "choices is 0"), (129, "choices is 129; it must be 1..128")])
async def test_a_number_out_of_range_is_refused(stack, choices, message):
    refused = await stack.refused([1, 2], choices=choices)
    assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "choices") and message in refused.message
    assert stack.target.calls == []


async def test_metrics_count_one_request_and_all_tokens(stack, telemetry):
    counted = {
        "presift.requests": {},
        "gen_ai.server.request.duration": {},
        "gen_ai.client.token.usage": {"token_type": "output"},
    }
    before = {name: telemetry.total(name, **words) for name, words in counted.items()}
    await answers(stack, [1, 2, 3], 3)
    new = [telemetry.total(name, **words) - before[name] for name, words in counted.items()]
    assert new == [1, 1, 3]
