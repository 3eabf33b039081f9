"""KV that the target selects while it generates: with a draft that is not asked, that fails, or that is not there."""

from dataclasses import replace

import pytest

from presift.cache.memory_store import MemoryStore
from presift.cache.store import CacheLimits
from presift.core.errors import InternalError, Overloaded, PromptTooLong
from presift.orchestrator.domain.request import KvLookahead
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.quality.sampler import Sampler
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.services import lookahead, model, raises
from ..fakes.stack import ALL_ROUTES, CASCADE, DEFAULTS, KV_CAPACITY, KV_WINDOW, LOOKAHEAD, refusal_of, wire_prompt

LONG = list(range(100, 200))
LATER = [*LONG, *range(300, 320)]
KV, KV_PC, AUTO = plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC, plan_pb2.ROUTE_AUTO
MASK = plan_pb2.KV_SELECTION_DRAFT_MASK
BY_DRAFT, BY_TARGET = orchestrator_pb2.KV_LOOKAHEAD_DRAFT, orchestrator_pb2.KV_LOOKAHEAD_TARGET
FIRST = 2


class FreeOfCharge(CostEstimator):
    """Predicts that everything takes no time, so that auto stays with the draft."""

    def state(self, *arguments, **named):
        return replace(super().state(*arguments, **named), costs=StageCosts(*[CostCurve(0.0, 0.0, 0.0)] * 3))


@pytest.fixture
def settled(open_stack):
    def opened(by=KvLookahead.TARGET, renew_every=0, **options):
        defaults = replace(DEFAULTS, lookahead=by, first_full_tokens=FIRST, renew_every=renew_every)
        return open_stack(routes=ALL_ROUTES, defaults=defaults, **options)

    return opened


async def test_the_draft_is_not_asked(settled):
    stack = await settled(renew_every=3)
    answer = await stack.ask(LONG, route=KV, spans=[(50, 52)])
    assert (answer.route, answer.reason, answer.cache) == ("SPEC_KV", "REQUESTED", "NOT_USED")
    assert stack.draft.calls == stack.target.prefills == []
    (call,) = stack.target.calls
    plan, policy = call.kv_plan, call.kv_plan.policy
    assert list(call.token_ids) == LONG and not plan.lookahead_token_ids and not plan.HasField("kv_mask")
    assert (policy.capacity, policy.window, policy.lookahead_tokens) == (KV_CAPACITY, KV_WINDOW, 0)
    assert (policy.first_full_tokens, policy.renew_every, policy.renew_window) == (FIRST, 3, KV_CAPACITY - 2)
    assert [(span.start, span.end) for span in plan.protected_spans] == [(50, 52)] and plan.keep_full_prefix
    decision = answer.decision
    assert decision.policy.spec_kv == policy and not decision.HasField("draft")
    assert (decision.kept_tokens, decision.kv_tokens, decision.draft_ms) == (100, KV_CAPACITY + 1, 0)


@pytest.mark.parametrize("by", [KvLookahead.TARGET, KvLookahead.AUTO])
async def test_no_draft_is_needed(settled, by):
    stack = await settled(by, draft_up=False)
    assert (await stack.ask(LONG, route=KV)).route == "SPEC_KV"
    limited = await stack.ask(LONG, route=AUTO, budget={"max_kv_tokens": KV_CAPACITY + 1})
    assert (limited.route, limited.reason) == ("SPEC_KV", "OVER_BUDGET")
    for route in (KV_PC, plan_pb2.ROUTE_SPEC_PC):
        answer = await stack.ask(LONG, route=route)
        assert (answer.route, answer.reason) == ("FULL", "DRAFT_UNAVAILABLE")


@pytest.mark.parametrize("by", [KvLookahead.TARGET, KvLookahead.AUTO])
async def test_a_strict_kv_limit_needs_the_draft(settled, by):
    strict = {"max_kv_tokens": KV_CAPACITY + 1, "strict": True}
    stack = await settled(by)
    assert (await stack.ask(LONG, route=KV, budget=strict)).decision.lookahead == BY_DRAFT
    stack.draft.faults.append(raises(InternalError("broken")))
    assert (await stack.refused(LATER, route=KV, budget=strict)).reason == "DRAFT_UNAVAILABLE"
    stack = await settled(by, draft_up=False)
    assert (await stack.refused(LONG, route=KV, budget=strict)).reason == "DRAFT_UNAVAILABLE"
    assert stack.target.calls == []
    refusal = await stack.refused(LONG, route=KV, budget=strict, kv={"lookahead": BY_TARGET})
    assert (refusal.reason, refusal.field) == ("INVALID_REQUEST", "budget.max_kv_tokens")


async def test_the_drafts_lookahead_needs_the_draft(settled):
    stack = await settled(KvLookahead.DRAFT, draft_up=False)
    answer = await stack.ask(LONG, route=KV)
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_UNAVAILABLE")


async def test_a_draft_that_stops_is_noticed(settled):
    stack = await settled(KvLookahead.AUTO, estimator=FreeOfCharge())
    assert (await stack.ask(LONG, route=KV)).decision.lookahead == BY_DRAFT
    await stack.draft_server.grpc.stop(0)
    await stack.settle(lambda: not stack.models.has_draft_now)
    answer = await stack.ask(LATER, route=KV)
    assert (answer.route, answer.decision.lookahead) == ("SPEC_KV", BY_TARGET)
    assert answer.decision.detail == f"keeps {KV_CAPACITY + 1} KV tokens"  # it was not asked


FAULTS = {
    "overloaded": (Overloaded("queue", 9, 8, 2.0), "draft_overloaded"),
    "too long": (PromptTooLong("prompt", 100, "<= 99"), "draft_context_too_small"),
    "broken": (InternalError("broken"), "draft_unavailable"),
}


@pytest.mark.parametrize(("error", "reason"), FAULTS.values(), ids=FAULTS)
async def test_the_target_looks_ahead_where_the_draft_fails(settled, caplog, telemetry, error, reason):
    stack = await settled(KvLookahead.AUTO, estimator=FreeOfCharge())
    counted = telemetry.total("presift.fallbacks", reason=reason, route="spec_kv")
    stack.draft.faults.append(raises(error))
    answer = await stack.ask(LONG, route=KV, budget={"max_kv_tokens": KV_CAPACITY + 1})
    assert (answer.route, answer.reason, len(stack.draft.calls)) == ("SPEC_KV", "REQUESTED", 1)
    assert answer.decision.policy.spec_kv.first_full_tokens == FIRST and not answer.decision.HasField("draft")
    assert answer.decision.detail.startswith(f"keeps {KV_CAPACITY + 1} KV tokens; ")
    assert "answered with the target's lookahead: requested" in caplog.text
    assert telemetry.total("presift.fallbacks", reason=reason, route="spec_kv") == counted + 1
    stack.draft.faults.append(raises(error))
    assert (await stack.ask(LONG, route=KV_PC)).route == "FULL"


async def test_options_override_the_settings(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)
    kv = {"lookahead": BY_TARGET, "first_full_tokens": 5, "renew_every": 4, "renew_window": 2}
    answer = await stack.ask(LONG, route=KV, kv=kv)
    policy = stack.target.calls[0].kv_plan.policy
    assert (policy.first_full_tokens, policy.renew_every, policy.renew_window) == (5, 4, 2)
    assert (stack.draft.calls, answer.decision.lookahead) == ([], BY_TARGET)


async def test_the_decision_says_who_made_the_lookahead(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)
    for route in (KV, KV_PC):
        assert (await stack.ask(LONG, route=route)).decision.lookahead == BY_DRAFT
        assert (await stack.ask(LONG, route=route, kv={"lookahead": BY_TARGET})).decision.lookahead == BY_TARGET
    without = {"mask": (KV, {"selection": MASK}), "window": (KV, {"lookahead_tokens": 0}), "no KV": (AUTO, {})}
    for route, kv in without.values():
        assert not (await stack.ask(LONG, route=route, kv=kv)).decision.HasField("lookahead")


async def test_what_must_be_selected_before_the_answer_is_selected_by_the_draft(settled):
    """To be shown, or so that another target can continue the answer; `auto` takes the target elsewhere."""
    stack = await settled(KvLookahead.AUTO, renew_every=3)
    assert (await stack.ask(LONG, route=KV)).decision.lookahead == BY_TARGET
    explain = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), route=KV, include_kv_mask=True)
    told = await stack.stub.Explain(explain)
    assert told.decision.lookahead == BY_DRAFT and told.HasField("kv_mask")
    decision = (await stack.ask(LATER, route=KV, migrate=True)).decision
    assert (decision.lookahead, decision.policy.spec_kv.renew_every) == (BY_DRAFT, 0)
    decision = (await stack.ask(LATER, route=KV, migrate=True, kv={"renew_every": 4})).decision
    assert decision.policy.spec_kv.renew_every == 4
    stack = await settled(KvLookahead.AUTO, renew_every=3, draft_up=False)
    assert (await stack.ask(LATER, route=KV, migrate=True)).decision.policy.spec_kv.renew_every == 3


@pytest.mark.parametrize("kv", [{}, {"renew_every": 3}, {"first_full_tokens": FIRST}], ids=str)
async def test_pages_of_several_tokens_renew_whole_pages(settled, kv):
    stack, capacity = await settled(renew_every=3, kv_page_tokens=8), KV_CAPACITY // 8 * 8
    answer = await stack.ask(LONG, route=KV, kv=kv)
    assert answer.decision.kv_tokens == answer.usage.kv_tokens == capacity + 1
    policy = stack.target.calls[0].kv_plan.policy
    assert (policy.capacity, policy.first_full_tokens, policy.renew_every) == (capacity, FIRST, 3)
    assert stack.draft.calls == []


async def test_the_kv_mask_of_a_selection_that_changes(settled):
    drafted, own = await settled(KvLookahead.DRAFT, renew_every=3), await settled()
    request = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), route=KV, include_kv_mask=True)
    first = await drafted.stub.Explain(request)
    assert first.decision.policy.spec_kv.renew_every == 3 and first.HasField("kv_mask")
    assert drafted.target.calls[0].kv_plan.policy.renew_every == 0
    nothing = await own.stub.Explain(request)
    assert not nothing.HasField("kv_mask") and own.target.calls == []
    for kv in ({"renew_every": 3}, {"first_full_tokens": 3}, {"lookahead": BY_TARGET}):
        request.kv.CopyFrom(orchestrator_pb2.KvOptions(**kv))
        refusal = await refusal_of(drafted.stub.Explain(request))
        assert (refusal.reason, refusal.field) == ("INVALID_REQUEST", "include_kv_mask")


async def test_explain_asks_no_draft_and_names_its_errors(settled):
    stack = await settled(draft_up=False)
    request = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), route=KV)
    explained = await stack.stub.Explain(request)
    assert explained.decision.policy.spec_kv.first_full_tokens == FIRST and len(explained.routes) == 4
    assert [(span.kept, span.importance) for span in explained.spans] == [(True, 0.0)]
    refusal = await refusal_of(
        stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), route=KV_PC))
    )
    assert refusal.reason == "DRAFT_UNAVAILABLE"


async def test_the_cascade_asks_the_draft_for_the_prompt_alone(settled):
    stack = await settled(renew_every=3)
    answer = await stack.ask(LONG, route=KV_PC)
    assert (answer.route, answer.cache, answer.decision.kept_tokens) == ("SPEC_KV_PC", "MISS", CASCADE)
    (call,) = stack.target.calls
    assert stack.draft.calls[0].policy.spec_kv_pc.kv.lookahead_tokens == 0
    assert call.kv_plan.policy.first_full_tokens == FIRST and call.kv_plan.keep_full_prefix
    assert not call.kv_plan.lookahead_token_ids and answer.decision.keep_full_prefix


async def test_renewal_with_the_drafts_lookahead(settled):
    stack = await settled(KvLookahead.DRAFT, renew_every=3)
    answer = await stack.ask(LONG, route=KV)
    plan = stack.target.calls[0].kv_plan
    assert list(plan.lookahead_token_ids) == lookahead(LOOKAHEAD)
    assert (plan.policy.renew_every, plan.policy.first_full_tokens) == (3, 0)
    assert answer.decision.policy.spec_kv == plan.policy


async def test_what_renews_shares_compressed_prompts(settled, open_stack):
    store = MemoryStore(CacheLimits())
    first = await settled(KvLookahead.DRAFT, store=store)
    assert (await first.ask(LONG, route=KV)).cache == "MISS"
    second = await settled(KvLookahead.DRAFT, renew_every=3, store=store)
    assert (await second.ask(LONG, route=KV)).cache == "HIT"


async def test_a_later_turn_continues_what_renews_from_its_first_entry(settled):
    stack = await settled(KvLookahead.DRAFT, renew_every=3)
    await stack.ask(LONG, route=KV)
    answer = await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    assert answer.decision.continued and answer.usage.reused_entry
    assert stack.target.calls[1].kv_plan.policy == stack.target.calls[0].kv_plan.policy
    freed = await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100, "keep_full_prefix": False})
    assert freed.decision.continued and stack.target.calls[2].kv_plan.policy.renew_every == 0


async def test_an_answer_that_began_on_the_full_kv_leaves_nothing_to_continue(settled):
    stack = await settled()
    await stack.ask(LONG, route=KV)
    answer = await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    assert not answer.decision.continued and answer.route == "SPEC_KV"
    assert answer.decision.detail.endswith("not continued: no selection of the first 100 prompt tokens is known")


async def test_a_window_alone_needs_no_draft_and_may_be_continued(settled):
    stack = await settled(KvLookahead.DRAFT, draft_up=False)
    first = await stack.ask(LONG, route=KV, kv={"lookahead_tokens": 0})
    assert (first.route, stack.target.calls[0].kv_plan.policy.first_full_tokens) == ("SPEC_KV", 0)
    answer = await stack.ask(LATER, route=KV, kv={"continue_prompt_tokens": 100})
    assert answer.decision.continued and not answer.decision.HasField("draft") and answer.usage.reused_entry


async def test_a_draft_without_its_last_layers_leaves_the_lookahead_to_the_target(settled):
    part = model("draft", layers=2, all_layers=4)
    for by in (KvLookahead.TARGET, KvLookahead.AUTO):
        stack = await settled(by, draft=part)
        assert [(await stack.ask(LONG, route=route)).route for route in (KV, KV_PC)] == ["SPEC_KV", "SPEC_KV_PC"]
        assert stack.target.calls[1].kv_plan.policy.first_full_tokens == FIRST
    stack = await settled(KvLookahead.DRAFT, draft=part)
    assert (await stack.refused(LONG, route=KV)).reason == "ROUTE_UNSUPPORTED"


async def test_a_draft_without_its_last_layers_serves_a_window_alone(open_stack, settled):
    part = model("draft", layers=2, all_layers=4)
    window = replace(DEFAULTS, spec_kv=replace(DEFAULTS.spec_kv, lookahead_tokens=0))
    by_request = await settled(KvLookahead.DRAFT, draft=part)
    by_setting = await open_stack(routes=ALL_ROUTES, defaults=window, draft=part)
    for stack, kv in ((by_request, {"lookahead_tokens": 0}), (by_setting, {})):
        answers = [await stack.ask(LONG, route=route, kv=kv) for route in (KV, KV_PC)]
        assert [(answer.route, answer.cache) for answer in answers] == [("SPEC_KV", "NOT_USED"), ("SPEC_KV_PC", "MISS")]
        assert len(stack.draft.calls) == 1 and not stack.target.calls[1].kv_plan.lookahead_token_ids
    refusal = await by_setting.refused(LONG, route=KV, kv={"lookahead_tokens": 1})
    assert refusal.reason == "ROUTE_UNSUPPORTED"


async def test_the_guard_compares_without_a_draft(settled):
    stack = await settled(draft_up=False, sampler=Sampler(1.0))
    await stack.ask(LONG, route=KV)
    await stack.settle(stack.guard.qualities)
    (quality,) = stack.guard.qualities()
    assert (quality.route, quality.samples, quality.exact_share) == ("spec_kv", 1, 1.0)
    assert [call.HasField("kv_plan") for call in stack.target.calls] == [True, False]
