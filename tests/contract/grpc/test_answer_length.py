"""`max_new_tokens` is an upper bound: the context cuts it, and a prompt that fits is not compressed for its sake."""

from dataclasses import replace

import pytest

from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.services import model, raises
from ..fakes.stack import ALL_ROUTES, DEFAULTS, Answer, request

CONTEXT = 4_000
FULL, PC, KV = plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV
KEPT = DEFAULTS.spec_pc.capacity


@pytest.fixture
async def stack(open_stack):
    """Compresses prompts of more than 3,950 tokens."""
    defaults = replace(DEFAULTS, compress_above_tokens=3_950)
    return await open_stack(routes=ALL_ROUTES, target=model("target", context_tokens=CONTEXT), defaults=defaults)


def asked(prompt_tokens, max_new_tokens, **options):
    """A request, without max_new_tokens for None."""
    wanted = request([1] * prompt_tokens, max_new_tokens=max_new_tokens or 1, **options)
    if max_new_tokens is None:
        wanted.sampling.ClearField("max_new_tokens")
    return wanted


ASKED = {
    # the request -> its route, and max_new_tokens of the target
    "fits": (asked(3_000, 1_000), "FULL", 1_000),
    "one too many": (asked(3_000, 1_001), "FULL", 1_000),
    "as much as libraries fill in": (asked(3_000, 128_000), "FULL", 1_000),
    "all of 32 bits": (asked(10, 2**32 - 1), "FULL", CONTEXT - 10),
    "little room is left": (asked(3_744, 1_000), "FULL", 256),
    "too little room is left": (asked(3_745, 1_000), "SPEC_PC", 1_000),
    "a short answer needs little room": (asked(3_900, 100), "FULL", 100),
    "no room for a short answer": (asked(3_901, 100), "SPEC_PC", 100),
    "nothing was set": (asked(3_900, None), "FULL", 100),
    "nothing was set, and hardly any room": (asked(3_945, None), "FULL", 55),
    "whole prompt by name": (asked(3_999, 1_000, route=FULL), "FULL", 1),
    "over the context": (asked(5_000, 128_000), "SPEC_PC", CONTEXT - KEPT),
    "compressed by name": (asked(3_990, 3_999, route=PC), "SPEC_PC", CONTEXT - KEPT),
    "KV dropped by name": (asked(3_960, 3_000, route=KV), "SPEC_KV", 40),
    "at least so many": (asked(3_700, 900, sampling={"min_new_tokens": 400}), "SPEC_PC", 900),
}


@pytest.mark.parametrize(("wanted", "route", "sent"), ASKED.values(), ids=ASKED)
async def test_the_context_cuts_the_answer(stack, wanted, route, sent):
    answer = Answer.of([event async for event in stack.stub.Generate(wanted)])
    assert answer.route == route
    assert stack.target.calls[-1].sampling.max_new_tokens == sent


PROTECTED = {
    # tokens of the prompt, max_new_tokens -> the route
    "short answer": (3_950, 100, "SPEC_PC"),
    "as much as libraries fill in": (3_950, 128_000, "SPEC_PC"),
    "short answer, over the context": (4_100, 100, "SPEC_PC"),
    "as much as libraries fill in, over the context": (4_100, 128_000, "SPEC_PC"),
}


@pytest.mark.parametrize(("tokens", "new_tokens", "route"), PROTECTED.values(), ids=PROTECTED)
async def test_who_asks_for_more_gets_no_less(open_stack, tokens, new_tokens, route):
    """Nearly all of the prompt is protected: the room reserved for the answer leaves it whole."""
    defaults = replace(DEFAULTS, spec_pc=replace(DEFAULTS.spec_pc, capacity=3_900))
    stack = await open_stack(routes=ALL_ROUTES, target=model("target", context_tokens=CONTEXT), defaults=defaults)
    answer = await stack.ask([1] * tokens, max_new_tokens=new_tokens, spans=[(0, 3_850)], route=PC)
    assert answer.route == route and stack.target.calls[-1].sampling.max_new_tokens >= 100


async def test_too_low_a_coverage_does_not_end_in_a_tiny_answer(stack):
    answer = await stack.ask([1] * 3_990, max_new_tokens=1_000, route=PC, budget={"min_coverage": 0.9})
    assert answer.route != "FULL" and stack.target.calls[-1].sampling.max_new_tokens == 1_000


async def test_explain_reserves_what_generate_does(stack):
    wanted = asked(3_900, None)
    answer = Answer.of([event async for event in stack.stub.Generate(wanted)])
    explained = await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wanted.prompt))
    assert explained.decision.route == answer.decision.route == FULL


@pytest.mark.parametrize(("asked", "warned"), [(4_000, True), (10, False)])
async def test_an_answer_that_the_context_stopped_says_so(stack, asked, warned):
    answer = await stack.ask([1] * 3_980, max_new_tokens=asked, route=FULL)
    text = f"the answer stopped at 20 tokens: the context has no room for max_new_tokens {asked}"
    assert list(answer.usage.warnings) == ([text] if warned else [])


@pytest.mark.parametrize("route", [PC, plan_pb2.ROUTE_UNSPECIFIED])
async def test_without_a_draft_a_prompt_that_fits_is_read_whole(stack, route):
    stack.draft.faults.append(raises(RuntimeError("defect")))
    answer = Answer.of([event async for event in stack.stub.Generate(asked(3_980, 1_000, route=route))])
    assert (answer.route, stack.target.calls[-1].sampling.max_new_tokens) == ("FULL", 20)


async def test_where_nothing_can_be_compressed_a_prompt_that_fits_is_read_whole(open_stack):
    stack = await open_stack(routes=(FULL,), target=model("target", context_tokens=CONTEXT))
    for budget in ({}, {"max_prompt_tokens": 100}):
        answer = await stack.ask([1] * 3_980, max_new_tokens=1_000, budget=budget)
        assert (answer.route, stack.target.calls[-1].sampling.max_new_tokens) == ("FULL", 20)
