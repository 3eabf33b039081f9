"""Later turns of a conversation: the selection of an earlier turn goes on, and what was dropped stays dropped."""

from dataclasses import replace

import pytest

from presift.core.errors import TargetUnavailable
from presift.core.plan import Route
from presift.orchestrator.planning.conversations import SELECTION_BYTES
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.services import CONTEXT, bits, keep, model, raises
from ..fakes.stack import ALL_ROUTES, KV_CAPACITY, request, wire_prompt

LONG = list(range(100, 200))
LATER = [*LONG, *range(300, 320)]
KV = plan_pb2.ROUTE_SPEC_KV
MASK = plan_pb2.KV_SELECTION_DRAFT_MASK


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES)


async def test_a_later_turn_continues_the_selection(stack):
    first = await stack.ask(LONG, route=KV, spans=[(50, 52)])
    answer = await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": first.decision.prompt_tokens})
    decision = answer.decision
    assert (answer.route, answer.reason, decision.continued) == ("SPEC_KV", "REQUESTED", True)
    assert decision.detail == "continues the selection of 100 tokens"
    assert (decision.prompt_tokens, decision.kept_tokens, decision.kv_tokens) == (120, 120, KV_CAPACITY + 1 + 20)
    assert answer.usage.kv_tokens == KV_CAPACITY + 1 + 20 and answer.usage.reused_entry
    assert (answer.cache, decision.draft, decision.policy) == ("NOT_USED", first.decision.draft, first.decision.policy)
    one, two = (call.kv_plan for call in stack.target.calls)
    assert (one.prompt_tokens, two.prompt_tokens) == (0, 100)
    two.prompt_tokens = 0
    assert one == two and list(stack.target.calls[1].token_ids) == LATER
    assert len(stack.draft.calls) == len(stack.target.prefills) == 1


async def test_turns_follow_turns_by_either_prompt(stack):
    await stack.ask(LONG, route=KV)
    await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    last = [*LATER, 400, 401]
    for begins in (100, 120):
        answer = await stack.ask(last, route=KV, kv={"continue_prompt_tokens": begins})
        assert answer.decision.continued and answer.decision.kv_tokens == KV_CAPACITY + 1 + 22
        assert stack.target.calls[-1].kv_plan.prompt_tokens == 100
    assert len(stack.draft.calls) == 1


async def test_chats_go_on(stack):
    chat = [("system", "be brief"), ("user", "x" * 60), ("user", "why?")]
    budget = {"max_kv_tokens": 90}
    first = await stack.ask(chat, route=KV, budget=budget)
    later = [*chat, ("assistant", "so"), ("user", "and?")]
    kv = {"continue_prompt_tokens": first.decision.prompt_tokens}
    answer = await stack.ask(later, route=KV, budget=budget, kv=kv)
    assert answer.decision.continued and answer.route == "SPEC_KV"


async def test_a_later_turn_reuses_the_draft_mask(stack):
    await stack.ask(LONG, route=KV, kv={"selection": MASK})
    answer = await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    mask = stack.target.calls[1].kv_plan.kv_mask
    assert (mask.prompt_tokens, mask.kept) == (100, bits(keep(100, KV_CAPACITY + 1, 4), 100))
    assert answer.decision.coverage == pytest.approx(0.11) and answer.usage.reused_entry


async def test_a_later_turn_can_override_keep_full_prefix(stack):
    await stack.ask(LONG, route=KV)
    await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    answer = await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100, "keep_full_prefix": False})
    assert [call.kv_plan.keep_full_prefix for call in stack.target.calls] == [True, True, False]
    assert not answer.decision.keep_full_prefix


async def new_prompt(stack, prompt=LATER, begins=100, **asked):
    answer = await stack.ask(prompt, route=KV, kv={"continue_prompt_tokens": begins}, **asked)
    assert not answer.decision.continued
    return answer


async def test_what_is_not_known_is_a_new_prompt(stack):
    answer = await new_prompt(stack)
    assert (answer.route, answer.cache, answer.decision.kv_tokens) == ("SPEC_KV", "MISS", KV_CAPACITY + 1)
    await stack.ask(LONG, route=KV)
    await new_prompt(stack, [*LONG[:99], 7, 8])
    await new_prompt(stack, begins=99)


PROTECTED = {
    "what may be dropped": ([(50, 52)], [(60, 61)]),
    "more than before": ([(50, 52)], [(50, 53)]),
    "beside the window": ([], [(95, 97)]),
    "across the end": ([], [(95, 110)]),
    "one of several": ([(50, 52)], [(10, 11), (50, 52)]),
}


@pytest.mark.parametrize(("before", "now"), PROTECTED.values(), ids=PROTECTED)
async def test_what_may_be_dropped_and_is_protected_now_is_a_new_prompt(stack, before, now):
    """The earlier selection cannot be changed; it is made anew, and keeps it."""
    await stack.ask(LONG, route=KV, spans=before)
    budget = {"max_kv_tokens": 40}
    answer = await new_prompt(stack, spans=now, budget=budget)
    assert (answer.route, answer.reason) == ("SPEC_KV", "REQUESTED")
    plan = stack.target.calls[1].kv_plan
    assert plan.prompt_tokens == 0
    assert [(span.start, span.end) for span in plan.protected_spans] == now
    kv = orchestrator_pb2.KvOptions(continue_prompt_tokens=100)
    asked = orchestrator_pb2.ExplainRequest(
        prompt=wire_prompt(LATER, now), route=KV, kv=kv, budget=orchestrator_pb2.Budget(**budget)
    )
    assert not (await stack.stub.Explain(asked)).decision.continued


STILL_KEPT = {
    "nothing": [],
    "the same": [(50, 52)],
    "less": [(51, 52)],
    "the window": [(96, 100)],
    "after what is covered": [(100, 115)],
    "the window and on": [(97, 120)],
    "all of it": [(50, 52), (96, 105), (119, 120)],
}


@pytest.mark.parametrize("now", STILL_KEPT.values(), ids=STILL_KEPT)
async def test_what_was_kept_for_certain_goes_on(stack, now):
    await stack.ask(LONG, route=KV, spans=[(50, 52)])
    answer = await stack.ask(LATER, route=KV, spans=now, kv={"continue_prompt_tokens": 100})
    assert answer.decision.continued
    assert [(s.start, s.end) for s in stack.target.calls[1].kv_plan.protected_spans] == [(50, 52)]


async def test_a_third_turn_is_held_against_the_first_selection(stack):
    await stack.ask(LONG, route=KV)
    await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    last = [*LATER, 400, 401]
    for spans, continued in (([(100, 120)], True), ([(95, 96)], False)):
        answer = await stack.ask(
            last, route=KV, spans=spans, budget={"max_kv_tokens": 60}, kv={"continue_prompt_tokens": 120}
        )
        assert answer.decision.continued is continued


def chat(*messages):
    """(role, text, is protected) each."""
    part = orchestrator_pb2.TextPart
    return orchestrator_pb2.Prompt(
        chat=orchestrator_pb2.Chat(
            messages=[
                orchestrator_pb2.Message(role=role, parts=[part(text=text, protected=protected)])
                for role, text, protected in messages
            ]
        )
    )


@pytest.mark.parametrize("protected", [False, True])
async def test_an_earlier_message_that_is_protected_only_now_makes_a_new_prompt(stack, protected):
    question, budget = ("user", "why?", False), {"max_kv_tokens": 90}
    answered = ("assistant", "so", False), ("user", "and?", False)
    first = await stack.ask(chat(("user", "x" * 60, False), question), route=KV, budget=budget)
    assert first.route == "SPEC_KV"
    kv = {"continue_prompt_tokens": first.decision.prompt_tokens}
    later = chat(("user", "x" * 60, protected), question, *answered)
    budget = {"max_kv_tokens": 130}
    answer = await stack.ask(later, route=KV, budget=budget, kv=kv)
    assert answer.decision.continued is not protected


@pytest.mark.parametrize("parts", [["x" * 1100], ["x" * 1100, "why?"]], ids=["document", "document and question"])
async def test_a_chat_that_began_with_a_document_goes_on(open_stack, parts):
    """A last turn is protected otherwise than the same turn once it is not the last."""
    stack = await open_stack(
        routes=ALL_ROUTES, draft=model("draft", context_tokens=5000), target=model("target", context_tokens=5000)
    )
    texts = [orchestrator_pb2.TextPart(text=text) for text in parts]
    begun = chat(("system", "be brief ", False))
    begun.chat.messages.add(role="user", parts=texts)
    later = orchestrator_pb2.Prompt()
    later.CopyFrom(begun)
    later.MergeFrom(chat(("assistant", " so ", False), ("user", "and?", False)))
    budget = {"max_kv_tokens": 120}
    first = await stack.ask(begun, route=KV, budget=budget)
    assert first.route == "SPEC_KV"
    kv = {"continue_prompt_tokens": first.decision.prompt_tokens}
    assert (await stack.ask(later, route=KV, budget=budget, kv=kv)).decision.continued


async def test_other_routes_are_not_gone_on_with(stack):
    for route in (plan_pb2.ROUTE_SPEC_KV_PC, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_FULL):
        await stack.ask(LONG, route=route)
    await new_prompt(stack)


async def test_what_the_target_never_answered_is_not_gone_on_with(stack):
    stack.target.faults.extend([raises(TargetUnavailable("gone"))] * 3)
    assert (await stack.refused(LONG, route=KV)).reason == "TARGET_UNAVAILABLE"
    await new_prompt(stack)


async def test_a_selection_can_be_continued_after_a_cancelled_answer(stack):
    stack.target.pause_after = 1
    call = stack.stub.Generate(request(LONG, route=KV))
    kinds = [(await call.read()).WhichOneof("event") for _ in range(2)]
    call.cancel()
    await stack.settle(lambda: stack.target.running == 0)
    stack.target.pause_after = None
    assert kinds == ["decision", "delta"]
    assert (await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})).decision.continued


async def test_the_memory_is_bounded(open_stack):
    stack = await open_stack(routes=ALL_ROUTES, turn_memory_bytes=2 * SELECTION_BYTES + 1024)
    for token_id in (1, 2, 3):
        await stack.ask([token_id, *LONG], route=KV)
    for token_id, is_known in ((1, False), (3, True)):
        answer = await stack.ask([token_id, *LATER], route=KV, kv={"continue_prompt_tokens": 101})
        assert answer.decision.continued is is_known


async def test_tenants_do_not_share(open_stack):
    one = await open_stack(routes=ALL_ROUTES, salt="one")
    await one.ask(LONG, route=KV)
    two = await open_stack(routes=ALL_ROUTES, salt="two", store=one.store)
    await new_prompt(two)


async def test_without_a_draft_a_conversation_goes_on(stack):
    await stack.ask(LONG, route=KV)
    await stack.draft_server.grpc.stop(0)
    assert (await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})).decision.continued


async def test_a_strict_budget_holds_for_later_turns(stack):
    await stack.ask(LONG, route=KV)
    going_on = {"route": KV, "kv": {"continue_prompt_tokens": 100}}
    held = KV_CAPACITY + 1 + 20
    assert (await stack.ask(LATER, budget={"max_kv_tokens": held, "strict": True}, **going_on)).decision.continued
    refusal = await stack.refused(LATER, budget={"max_kv_tokens": held - 1, "strict": True}, **going_on)
    assert (refusal.reason, refusal.field, refusal.value) == ("BUDGET_EXCEEDED", "budget.max_kv_tokens", str(held))
    answer = await stack.ask(LATER, budget={"max_kv_tokens": held - 1}, **going_on)
    assert answer.decision.continued and "over max_kv_tokens" in answer.decision.detail


async def test_a_later_turn_is_predicted_and_held_against_the_time(stack):
    first = await stack.ask(LONG, route=KV)
    going_on = {"route": KV, "kv": {"continue_prompt_tokens": 100}}
    answer = await stack.ask(LATER, **going_on)
    assert 0 < answer.decision.predicted_ttft_ms < first.decision.predicted_ttft_ms / 2
    late = await stack.ask(LATER, budget={"max_ttft_ms": 1}, **going_on)
    assert late.decision.continued and "over max_ttft_ms 1" in late.decision.detail
    refusal = await stack.refused(LATER, budget={"max_ttft_ms": 1, "strict": True}, **going_on)
    assert (refusal.reason, refusal.field) == ("BUDGET_EXCEEDED", "budget.max_ttft_ms")


async def test_a_selection_that_covers_too_little_is_not_gone_on_with(stack):
    await stack.ask(LONG, route=KV, kv={"selection": MASK})
    going_on = {"route": KV, "kv": {"continue_prompt_tokens": 100, "selection": MASK}}
    assert (await stack.ask(LATER, budget={"min_coverage": 0.1}, **going_on)).decision.continued
    answer = await stack.ask(LATER, budget={"min_coverage": 0.2}, **going_on)
    assert not answer.decision.continued and (answer.route, answer.reason) == ("FULL", "COVERAGE_TOO_LOW")


async def test_a_selection_of_which_coverage_is_not_known_is_not_gone_on_with(stack):
    await stack.ask(LONG, route=KV)
    going_on = {"route": KV, "kv": {"continue_prompt_tokens": 100}, "budget": {"min_coverage": 0.05}}
    answer = await stack.ask(LATER, **going_on)
    assert not answer.decision.continued and "not known to cover min_coverage" in answer.decision.detail
    await stack.ask([5, *LONG], route=KV, budget={"min_coverage": 0.05})
    answer = await stack.ask([5, *LATER], **going_on | {"kv": {"continue_prompt_tokens": 101}})
    assert answer.decision.continued


async def test_auto_continues_a_known_selection(stack):
    await stack.ask(LONG, route=KV)
    answer = await stack.ask(LATER, kv={"continue_prompt_tokens": 100})
    assert answer.decision.continued and answer.route == "SPEC_KV"
    answer = await stack.ask(LATER, kv={"continue_prompt_tokens": 99})
    assert (answer.route, answer.decision.continued) == ("SPEC_PC", False)
    assert "not continued: no selection of the first 99 prompt tokens is known" in answer.decision.detail


@pytest.mark.parametrize("explains", [False, True])
async def test_an_unknown_beginning_is_reported(stack, explains):
    await stack.ask(LONG, route=KV)
    kv = {"continue_prompt_tokens": 99}
    asked = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LATER), route=KV, kv=orchestrator_pb2.KvOptions(**kv))
    answer = (await stack.stub.Explain(asked)) if explains else (await stack.ask(LATER, route=KV, kv=kv))
    assert "not continued: no selection of the first 99 prompt tokens is known" in answer.decision.detail
    assert not answer.decision.continued


async def test_a_later_turn_must_fit_the_context(stack):
    await stack.ask(LONG, route=KV)
    long = [*LONG, *[1] * (CONTEXT - 100)]
    refusal = await stack.refused(long, route=KV, kv={"continue_prompt_tokens": 100})
    assert (refusal.reason, refusal.field) == ("PROMPT_TOO_LONG", "prompt")


async def test_a_route_that_is_no_longer_served_is_refused(stack):
    await stack.ask(LONG, route=KV)
    stack.models.target = replace(stack.models.target, supported=frozenset({Route.FULL}))
    refusal = await stack.refused(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    assert refusal.reason == "ROUTE_UNSUPPORTED" and len(stack.target.calls) == 1


async def test_explain_says_the_same_of_a_later_turn(stack):
    await stack.ask(LONG, route=KV, kv={"selection": MASK})
    kv = orchestrator_pb2.KvOptions(continue_prompt_tokens=100)
    told = await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LATER), route=KV, kv=kv))
    assert told.decision.continued and told.decision.kv_tokens == KV_CAPACITY + 1 + 20
    assert sum(span.tokens.end - span.tokens.start for span in told.spans if span.kept) == KV_CAPACITY + 1 + 20
    assert len(stack.draft.calls) == 1
