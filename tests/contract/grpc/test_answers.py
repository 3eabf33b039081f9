"""OrchestratorService on the wire: what is read, what is said about it, and in which order."""

import asyncio
import time

import pytest

from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.services import keep
from ..fakes.stack import CAPACITY, THRESHOLD, WINDOW, byte_tokenizer, request, wire_prompt

LONG = list(range(100, 200))
FATES = ("kept", "dropped")


async def test_short_prompt_is_read_in_full(stack):
    answer = await stack.ask([5, 6, 7])
    assert (answer.route, answer.reason, answer.cache) == ("FULL", "BELOW_THRESHOLD", "NOT_USED")
    assert answer.token_ids == [7, 6, 5]
    assert (answer.decision.prompt_tokens, answer.decision.kept_tokens, answer.decision.kv_tokens) == (3, 3, 3)
    assert not answer.decision.HasField("draft") and not answer.decision.HasField("policy")
    assert not answer.decision.HasField("coverage")
    assert answer.usage.completion_tokens == 3 and answer.usage.cached_tokens == 3
    assert stack.draft.calls == []


async def test_long_prompt_is_compressed_to_what_the_draft_kept(stack):
    answer = await stack.ask(LONG)
    kept = [LONG[i] for i in keep(100, CAPACITY, WINDOW)]
    assert (answer.route, answer.reason, answer.cache) == ("SPEC_PC", "OVER_BUDGET", "MISS")
    assert list(stack.target.calls[0].token_ids) == kept
    assert answer.token_ids == kept[::-1][:5]
    decision = answer.decision
    assert (decision.prompt_tokens, decision.kept_tokens, decision.kv_tokens) == (100, 16, 16)
    assert decision.coverage == pytest.approx(0.16)
    assert decision.policy.spec_pc.capacity == CAPACITY and decision.policy.spec_pc.window == WINDOW
    assert (decision.draft, decision.target) == (stack.draft.model, stack.target.model)
    assert (answer.usage.prompt_tokens, answer.usage.kept_tokens) == (100, 16)
    assert answer.usage.target_ttft_ms == 7.0


async def test_the_time_to_the_first_token_is_what_the_caller_waits(stack):
    """The draft's part included: half a second of a scorer is in it."""

    async def is_slow(context):
        await asyncio.sleep(0.5)

    stack.draft.faults.append(is_slow)
    began, first_ms, ttft_ms = time.perf_counter(), 0.0, 0.0
    async for event in stack.stub.Generate(request(LONG)):
        if event.WhichOneof("event") == "delta" and not first_ms:
            first_ms = (time.perf_counter() - began) * 1000
        ttft_ms = event.usage.ttft_ms or ttft_ms
    assert 500 <= ttft_ms <= first_ms


async def test_protected_spans_of_token_ids_are_kept(stack):
    answer = await stack.ask(LONG, spans=[(50, 53), (52, 55)])
    assert list(stack.target.calls[0].token_ids) == [LONG[i] for i in keep(100, CAPACITY, WINDOW, [(50, 55)])]
    assert answer.decision.protected_tokens == 5


@pytest.mark.parametrize(("prompt_tokens", "route"), [(THRESHOLD, "FULL"), (THRESHOLD + 1, "SPEC_PC")])
async def test_threshold_default(stack, prompt_tokens, route):
    assert (await stack.ask(LONG[:prompt_tokens])).route == route


@pytest.mark.parametrize(
    ("threshold", "prompt_tokens", "route"), [(99, 100, "SPEC_PC"), (100, 100, "FULL"), (0, 17, "SPEC_PC")]
)
async def test_threshold_of_the_request(stack, threshold, prompt_tokens, route):
    assert (await stack.ask(LONG[:prompt_tokens], budget={"compress_above_tokens": threshold})).route == route


async def test_named_route_full_reads_everything(stack):
    answer = await stack.ask(LONG, route=plan_pb2.ROUTE_FULL, max_new_tokens=200 - 100)
    assert (answer.route, answer.reason) == ("FULL", "REQUESTED")
    assert answer.token_ids == LONG[::-1]


async def test_named_route_spec_pc(stack):
    answer = await stack.ask(LONG, route=plan_pb2.ROUTE_SPEC_PC, budget={"max_kv_tokens": 20})
    assert (answer.route, answer.reason, answer.decision.kept_tokens) == ("SPEC_PC", "REQUESTED", 20)


async def test_the_tighter_budget_counts(stack):
    answer = await stack.ask(LONG, budget={"max_kv_tokens": 30, "max_prompt_tokens": 20})
    assert answer.decision.kept_tokens == 20


async def test_prompt_within_budget_is_read_in_full(stack):
    answer = await stack.ask(LONG, budget={"max_prompt_tokens": 100})
    assert (answer.route, answer.reason) == ("FULL", "WITHIN_BUDGET")


async def test_prompt_over_the_context_is_compressed_to_what_fits(stack):
    answer = await stack.ask([1] * 300, max_new_tokens=394, sampling={"min_new_tokens": 394})
    assert (answer.route, answer.decision.kept_tokens) == ("SPEC_PC", 6)


async def test_text_is_tokenised_and_detokenised(stack):
    assert (await stack.ask("abc")).text == "cba"


async def test_chat_keeps_system_template_and_question(stack):
    chat = [("system", "be brief"), ("user", "x" * 60), ("assistant", "y" * 30), ("user", "why?")]
    await stack.ask(chat, budget={"max_prompt_tokens": 150})
    (score,) = stack.draft.calls
    rendered = (
        f"<system>be brief</system><user>{'x' * 60}</user><assistant>{'y' * 30}</assistant><user>why?</user><assistant>"
    )
    droppable = [rendered.index("x" * 60) + i for i in range(60)] + [rendered.index("y" * 30) + i for i in range(30)]
    protected = {i for span in score.protected_spans for i in range(span.start, span.end)}
    assert sorted(protected | set(droppable)) == list(range(len(rendered)))
    assert protected.isdisjoint(droppable)
    assert stack.draft.calls[0].token_ids[:3] == list(stack.target.calls[0].token_ids)[:3]


async def test_sampling_reaches_the_target(stack):
    sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 9, "stop": ["\n"], "stop_token_ids": [4]}
    await stack.ask([5], sampling=sampling, max_new_tokens=2)
    await stack.ask([5])
    given, left_out = (call.sampling for call in stack.target.calls)
    assert (given.temperature, given.top_p, given.top_k, given.seed) == (0.5, 0.25, 3, 9)
    assert (given.max_new_tokens, list(given.stop), list(given.stop_token_ids)) == (2, ["\n"], [4])
    assert not left_out.HasField("temperature") and not left_out.HasField("seed")


async def test_stop_string_is_not_shown(stack):
    assert (await stack.ask("54321", sampling={"stop": ["34"]})).text == "12"


async def test_get_info(stack):
    info = await stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest())
    assert (info.draft, info.target) == (stack.draft.model, stack.target.model)
    assert list(info.supported_routes) == [plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC]
    assert info.compress_above_tokens == THRESHOLD


async def test_explain_covers_the_prompt_and_does_not_generate(stack):
    explained = await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt("z" * 40)))
    assert [(span.tokens.start, span.tokens.end, span.kept) for span in explained.spans] == [
        (0, 12, True),
        (12, 36, False),
        (36, 40, True),
    ]
    assert [(span.characters.start, span.characters.end) for span in explained.spans] == [(0, 12), (12, 36), (36, 40)]
    assert sum(span.importance for span in explained.spans) == pytest.approx(1)
    assert explained.spans[0].importance == pytest.approx(sum(range(12)) / sum(range(40)))
    assert stack.target.calls == []


async def test_explain_of_token_ids_has_no_characters(stack):
    explained = await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG)))
    assert not any(span.HasField("characters") for span in explained.spans)


async def test_requests_are_counted(stack, telemetry):
    before = telemetry.total("presift.requests", route="spec_pc", reason="over_budget")
    kept, dropped = (telemetry.total("presift.prompt.tokens", route="spec_pc", fate=fate) for fate in FATES)
    await stack.ask(LONG)
    assert telemetry.total("presift.requests", route="spec_pc", reason="over_budget") == before + 1
    assert telemetry.total("presift.prompt.tokens", route="spec_pc", fate="kept") == kept + 16
    assert telemetry.total("presift.prompt.tokens", route="spec_pc", fate="dropped") == dropped + 84


async def test_marked_documents_are_all_that_is_dropped_from(stack):
    part = orchestrator_pb2.TextPart
    parts = [part(text="Read: "), part(text="d" * 100, document=True), part(text=" Why?" * 5)]
    turns = [("user", [part(text="h" * 40)]), ("user", parts)]
    chat = orchestrator_pb2.Chat(messages=[orchestrator_pb2.Message(role=role, parts=made) for role, made in turns])
    rendered = f"<user>{'h' * 40}</user><user>Read: {'d' * 100}{' Why?' * 5}</user><assistant>"
    answer = await stack.ask(orchestrator_pb2.Prompt(chat=chat), budget={"max_prompt_tokens": 140})
    assert answer.route == "SPEC_PC" and answer.decision.prompt_tokens == len(rendered)
    assert answer.decision.protected_tokens == len(rendered) - 100
    read = byte_tokenizer().decode(list(stack.target.calls[0].token_ids))
    assert len(read) == 140 and read.replace("d", "") == rendered.replace("d", "")
