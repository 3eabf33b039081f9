"""One draft pass for many askers, and what the cache does for those who come later."""

import asyncio

import pytest

from presift.core.errors import Overloaded
from presift.v1 import orchestrator_pb2

from ..fakes.services import keep, raises
from ..fakes.stack import CAPACITY, WINDOW, request

LONG = list(range(100, 200))


async def test_64_identical_requests_cost_one_draft_pass(stack):
    stack.draft.gate.clear()
    asking = [asyncio.create_task(stack.ask(LONG)) for _ in range(64)]
    await stack.settle(lambda: len(stack.draft.calls) == 1)
    stack.draft.gate.set()
    answers = await asyncio.gather(*asking)
    assert len(stack.draft.calls) == 1
    assert {answer.route for answer in answers} == {"SPEC_PC"}
    assert {tuple(answer.token_ids) for answer in answers} == {tuple(answers[0].token_ids)}
    # Who comes while the first is scored shares; who comes after finds it in the cache. None computes it again.
    outcomes = [answer.cache for answer in answers]
    assert outcomes.count("MISS") == 1 and set(outcomes) <= {"MISS", "SHARED", "HIT"}
    assert (await stack.ask(LONG)).cache == "HIT" and len(stack.draft.calls) == 1


async def test_requests_that_wait_for_one_score_share_it(stack):
    stack.draft.gate.clear()
    calls = [stack.stub.Generate(request(LONG)) for _ in range(8)]
    await stack.settle(lambda: len(stack.draft.calls) == 1)
    # A server takes calls in turn: when this one is answered, the eight before it wait for the draft.
    await stack.ask([1, 2])
    stack.draft.gate.set()
    outcomes = sorted([(await call.read()).decision.cache for call in calls])
    assert outcomes == [orchestrator_pb2.CACHE_OUTCOME_MISS] + [orchestrator_pb2.CACHE_OUTCOME_SHARED] * 7
    for call in calls:
        call.cancel()


async def test_8_different_prompts_get_8_right_answers(stack):
    prompts = [[token_id + shift for token_id in LONG] for shift in range(8)]
    answers = await asyncio.gather(*(stack.ask(prompt) for prompt in prompts for _ in range(4)))
    for number, answer in enumerate(answers):
        prompt = prompts[number // 4]
        assert answer.token_ids == [prompt[i] for i in keep(100, CAPACITY, WINDOW)][::-1][:5]
    assert len(stack.draft.calls) == 8


async def test_a_disconnect_does_not_cancel_the_shared_score(stack):
    stack.draft.gate.clear()
    first = stack.stub.Generate(request(LONG))
    await stack.settle(lambda: len(stack.draft.calls) == 1)
    second = asyncio.create_task(stack.ask(LONG))
    await stack.ask([1, 2])  # the server takes calls in turn: `second` waits for the score now
    first.cancel()
    await stack.ask([1, 2])
    stack.draft.gate.set()
    answer = await second
    assert (answer.route, answer.cache, len(stack.draft.calls)) == ("SPEC_PC", "SHARED", 1)


async def test_a_failed_draft_pass_is_not_cached(stack):
    stack.draft.faults.append(raises(Overloaded("queue", 9, 8, 2.0)))
    assert (await stack.ask(LONG)).reason == "DRAFT_OVERLOADED"
    assert (await stack.ask(LONG)).cache == "MISS"


async def test_full_route_needs_no_draft(stack):
    await asyncio.gather(*(stack.ask([1, 2, 3]) for _ in range(16)))
    assert stack.draft.calls == []


@pytest.mark.parametrize("prompt", ["w" * 100, [("user", "w" * 2000), ("user", "?")]])
async def test_text_and_chats_hit_the_cache(stack, prompt):
    budget = {"max_prompt_tokens": 60}
    outcomes = [(await stack.ask(prompt, budget=budget, max_new_tokens=1)).cache for _ in range(2)]
    assert outcomes == ["MISS", "HIT"]
