"""Routes spec_kv and spec_kv_pc on the wire: what draft and target are told, what is said about it."""

from dataclasses import replace

import pytest

from presift.core.errors import InvalidRequest, RouteUnsupported
from presift.core.plan import CompressedPrompt
from presift.core.policies import KvSelection
from presift.rpc.codec import model_from_wire
from presift.v1 import orchestrator_pb2, plan_pb2

from ...builders import token_mask
from ..fakes.services import CONTEXT, VOCABULARY, bits, keep, lookahead, model, raises
from ..fakes.stack import ALL_ROUTES, CASCADE, DEFAULTS, KV_CAPACITY, KV_WINDOW, LOOKAHEAD, refusal_of, wire_prompt

LONG = list(range(100, 200))
KV, KV_PC = plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC
TARGET, MASK = plan_pb2.KV_SELECTION_TARGET_LOOKAHEAD, plan_pb2.KV_SELECTION_DRAFT_MASK
BY_DRAFT, BY_TARGET = orchestrator_pb2.KV_LOOKAHEAD_DRAFT, orchestrator_pb2.KV_LOOKAHEAD_TARGET


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES)


async def test_spec_kv_reads_the_whole_prompt_and_keeps_part_of_its_kv(stack):
    answer = await stack.ask(LONG, route=KV, spans=[(50, 52)])
    assert (answer.route, answer.reason, answer.cache) == ("SPEC_KV", "REQUESTED", "MISS")
    (call,), (score,) = stack.target.calls, stack.draft.calls
    assert list(call.token_ids) == LONG and answer.token_ids == LONG[::-1][:5]
    plan = call.kv_plan
    assert (plan.policy.capacity, plan.policy.window, plan.policy.selection) == (KV_CAPACITY, KV_WINDOW, TARGET)
    assert list(plan.lookahead_token_ids) == lookahead(LOOKAHEAD) and not plan.HasField("kv_mask")
    assert [(span.start, span.end) for span in plan.protected_spans] == [(50, 52)]
    assert plan.keep_full_prefix and plan.prompt_tokens == 0
    assert score.policy.spec_kv == answer.decision.policy.spec_kv == plan.policy


async def test_what_the_decision_says_about_spec_kv(stack):
    answer = await stack.ask(LONG, route=KV)
    decision, usage = answer.decision, answer.usage
    assert (decision.prompt_tokens, decision.kept_tokens, decision.kv_tokens) == (100, 100, KV_CAPACITY + 1)
    assert decision.keep_full_prefix and not decision.continued and not decision.HasField("coverage")
    assert str(KV_CAPACITY + 1) in decision.detail and decision.draft == stack.draft.model
    assert (usage.kv_tokens, usage.reused_entry, usage.score_ms, usage.publish_ms) == (KV_CAPACITY + 1, False, 11, 4)
    assert usage.coverage == 0.75
    again = await stack.ask(LONG, route=KV)
    assert (again.cache, again.usage.reused_entry, again.usage.cached_tokens) == ("HIT", True, KV_CAPACITY)
    assert not again.usage.HasField("coverage")


async def test_the_other_routes_say_nothing_of_kv(stack):
    answer = await stack.ask(LONG, route=plan_pb2.ROUTE_SPEC_PC)
    assert not answer.decision.HasField("keep_full_prefix") and not stack.target.calls[0].HasField("kv_plan")
    assert not answer.usage.HasField("coverage") and stack.target.prefills == []


async def test_draft_mask_is_sent_for_every_layer_and_head(stack):
    answer = await stack.ask(LONG, route=KV, kv={"selection": MASK}, spans=[(50, 52)])
    plan = stack.target.calls[0].kv_plan
    kept = keep(100, KV_CAPACITY + 1, KV_WINDOW + 1, [(50, 52)])
    assert (plan.kv_mask.layers, plan.kv_mask.kv_heads, plan.kv_mask.prompt_tokens) == (1, 1, 100)
    assert plan.kv_mask.kept == bits(kept, 100) and not plan.lookahead_token_ids
    assert list(stack.target.calls[0].token_ids) == LONG
    assert (answer.decision.kept_tokens, answer.decision.kv_tokens) == (100, KV_CAPACITY + 1)
    assert answer.decision.coverage == pytest.approx(0.11)


async def test_the_mask_is_drawn_by_the_orchestrators_settings(stack):
    await stack.ask(LONG, route=KV, kv={"selection": MASK})
    mask = stack.draft.calls[0].policy.spec_kv.mask
    assert (mask.kernel, mask.neighbors) == (1, 0)
    assert mask.start_layer == stack.draft.model.layers // 2


async def test_the_default_selection_is_a_setting(open_stack):
    spec_kv = replace(DEFAULTS.spec_kv, selection=KvSelection.DRAFT_MASK)
    stack = await open_stack(routes=ALL_ROUTES, defaults=replace(DEFAULTS, spec_kv=spec_kv))
    await stack.ask(LONG, route=KV)
    await stack.ask(LONG, route=KV, kv={"selection": TARGET})
    await stack.ask(LONG, route=KV_PC)
    assert [call.kv_plan.policy.selection for call in stack.target.calls] == [MASK, TARGET, TARGET]


async def test_spec_kv_pc_reads_the_kept_tokens_and_drops_their_kv(stack):
    answer = await stack.ask(LONG, route=KV_PC, spans=[(50, 52), (97, 98)])
    assert (answer.route, answer.reason, answer.cache) == ("SPEC_KV_PC", "REQUESTED", "MISS")
    kept = keep(100, CASCADE, 4, [(50, 52), (97, 98)])
    (call,) = stack.target.calls
    assert list(call.token_ids) == [LONG[i] for i in kept]
    spans = [(span.start, span.end) for span in call.kv_plan.protected_spans]
    assert spans == [(kept.index(50), kept.index(51) + 1), (kept.index(97), kept.index(97) + 1)]
    assert list(call.kv_plan.lookahead_token_ids) == lookahead(LOOKAHEAD) and not call.kv_plan.keep_full_prefix
    decision = answer.decision
    assert (decision.prompt_tokens, decision.kept_tokens, decision.kv_tokens) == (100, CASCADE, KV_CAPACITY + 1)
    assert not decision.keep_full_prefix and decision.HasField("keep_full_prefix")
    assert decision.policy.spec_kv_pc == stack.draft.calls[0].policy.spec_kv_pc
    assert decision.coverage == pytest.approx(0.24) and stack.target.prefills == []
    assert (await stack.ask(LONG, route=KV_PC, spans=[(50, 52), (97, 98)])).usage.reused_entry


async def test_spec_kv_pc_says_what_it_came_to(stack):
    whole = await stack.ask(LONG, route=KV_PC, budget={"max_prompt_tokens": 100})
    assert (whole.route, whole.decision.kept_tokens) == ("SPEC_KV", 100)
    plain = await stack.ask(LONG, route=KV_PC, budget={"max_prompt_tokens": 20, "max_kv_tokens": 20})
    assert (plain.route, plain.decision.kept_tokens, plain.decision.kv_tokens) == ("SPEC_PC", 20, 20)
    assert not stack.target.calls[-1].HasField("kv_plan")


async def test_a_draft_that_keeps_little_leaves_nothing_to_drop(stack):
    def few(reply, request):
        reply.token_mask.kept = bits(range(92, 100), 100)

    stack.draft.spoil = few
    answer = await stack.ask(LONG, route=KV_PC)
    assert (answer.route, answer.decision.kept_tokens, answer.decision.kv_tokens) == ("SPEC_KV_PC", 8, 8)
    assert not stack.target.calls[0].HasField("kv_plan")


async def test_budgets(stack):
    held = await stack.ask(LONG, route=KV, budget={"max_kv_tokens": 21, "strict": True})
    assert (held.decision.kv_tokens, stack.target.calls[-1].kv_plan.policy.capacity) == (21, 20)
    refusal = await stack.refused(LONG, route=KV, budget={"max_prompt_tokens": 50, "strict": True})
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BUDGET_EXCEEDED")
    assert (refusal.field, refusal.value) == ("budget.max_prompt_tokens", "100")
    cascade = await stack.ask(LONG, route=KV, budget={"max_prompt_tokens": 50})
    assert (cascade.route, cascade.decision.kept_tokens) == ("SPEC_KV_PC", 50)
    assert "are over max_prompt_tokens 50" in cascade.decision.detail


async def test_capacity_is_whole_pages_of_the_target(open_stack):
    stack = await open_stack(routes=ALL_ROUTES, kv_page_tokens=8)
    answer = await stack.ask(LONG, route=KV, budget={"max_kv_tokens": 31})
    assert (stack.target.calls[0].kv_plan.policy.capacity, answer.decision.kv_tokens) == (24, 25)


# What scoring takes: the tokens read, the lookahead, the entry and its final token, two pages.
POOLS = {KV: 100 + LOOKAHEAD + KV_CAPACITY + 1 + 2, KV_PC: CASCADE + LOOKAHEAD + KV_CAPACITY + 1 + 2}


@pytest.mark.parametrize(("route", "needed"), POOLS.items(), ids=("spec_kv", "spec_kv_pc"))
async def test_a_pool_that_cannot_hold_prompt_and_entry_reads_the_prompt_in_full(open_stack, route, needed):
    large, small = [await open_stack(routes=ALL_ROUTES, kv_pool_tokens=needed + more) for more in (1, 0)]
    assert (await large.ask(LONG, route=route)).reason == "REQUESTED"
    answer = await small.ask(LONG, route=route)
    assert (answer.route, answer.reason, answer.decision.kv_tokens) == ("FULL", "KV_POOL_TOO_SMALL", 100)
    assert f"{needed} slots" in answer.decision.detail
    assert small.draft.calls == small.target.prefills == [] and not small.target.calls[0].HasField("kv_plan")
    budget = {"max_kv_tokens": KV_CAPACITY + 1, "strict": True}
    refusal = await small.refused(LONG, route=route, budget=budget)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BUDGET_EXCEEDED")


@pytest.mark.parametrize(("route", "spans"), [(KV, [(0, 8)]), (KV_PC, [(0, 8)]), (KV_PC, [(0, CASCADE)])])
async def test_protected_over_budget(stack, route, spans):
    answer = await stack.ask(LONG, route=route, spans=spans)
    assert (answer.route, answer.reason) == ("FULL", "PROTECTED_OVER_BUDGET")
    assert stack.draft.calls == [] and not stack.target.calls[0].HasField("kv_plan")


async def test_protected_at_the_budget(stack):
    for route in (KV, KV_PC):
        assert (await stack.ask(LONG, route=route, spans=[(0, 7), (97, 100)])).reason == "ONLY_PROTECTED_KEPT"


async def test_short_prompts_are_read_in_full(stack):
    assert (await stack.ask(LONG[:32], route=KV)).reason == "BELOW_THRESHOLD"
    within = await stack.ask(LONG, route=KV, budget={"max_kv_tokens": 100})
    assert (within.route, within.reason) == ("FULL", "WITHIN_BUDGET")


async def test_options(stack):
    await stack.ask(LONG, route=KV, kv={"keep_full_prefix": False, "lookahead_tokens": 2})
    plan = stack.target.calls[0].kv_plan
    assert not plan.keep_full_prefix and list(plan.lookahead_token_ids) == lookahead(2)
    assert stack.target.prefills == []
    await stack.ask(LONG, route=KV_PC, kv={"keep_full_prefix": True, "lookahead_tokens": 0})
    plan = stack.target.calls[1].kv_plan
    assert plan.keep_full_prefix and not plan.lookahead_token_ids


REFUSED = {
    "unknown selection": ({"route": KV, "kv": {"selection": 9}}, "kv.selection", "9"),
    "mask on spec_kv_pc": ({"route": KV_PC, "kv": {"selection": MASK}}, "kv.selection", "draft_mask"),
    "lookahead": ({"route": KV, "kv": {"lookahead_tokens": 257}}, "kv.lookahead_tokens", "257"),
    "unknown lookahead": ({"route": KV, "kv": {"lookahead": 9}}, "kv.lookahead", "9"),
    "no first tokens": ({"route": KV, "kv": {"first_full_tokens": 0}}, "kv.first_full_tokens", "0"),
    "no window": ({"route": KV, "kv": {"renew_window": 0}}, "kv.renew_window", "0"),
    "first tokens by the draft": ({"kv": {"first_full_tokens": 4, "lookahead": BY_DRAFT}}, "kv.lookahead", "draft"),
    "first tokens with a mask": ({"kv": {"first_full_tokens": 4, "selection": MASK}}, "kv.selection", "draft_mask"),
    "both lookaheads": ({"kv": {"lookahead": BY_TARGET, "lookahead_tokens": 3}}, "kv.lookahead_tokens", "3"),
    "renewal without the prefix": (
        {"kv": {"renew_every": 4, "keep_full_prefix": False}},
        "kv.keep_full_prefix",
        "false",
    ),
    "coverage without a draft": (
        {"kv": {"lookahead": BY_TARGET}, "budget": {"min_coverage": 0.5}},
        "budget.min_coverage",
        "0.5",
    ),
    "window": ({"route": KV, "budget": {"max_kv_tokens": KV_WINDOW + 1}}, "budget.max_kv_tokens", str(KV_WINDOW + 1)),
    "continue nothing": ({"route": KV, "kv": {"continue_prompt_tokens": 0}}, "kv.continue_prompt_tokens", "0"),
    "continue all": ({"route": KV, "kv": {"continue_prompt_tokens": 100}}, "kv.continue_prompt_tokens", "100"),
    "continue elsewhere": (
        {"route": KV_PC, "kv": {"continue_prompt_tokens": 50}},
        "kv.continue_prompt_tokens",
        "50",
    ),
}


@pytest.mark.parametrize(("asked", "field", "value"), REFUSED.values(), ids=REFUSED)
async def test_refusals(stack, asked, field, value):
    refusal = await stack.refused(LONG, **asked)
    assert (refusal.code, refusal.reason, refusal.field, refusal.value) == (
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
        field,
        value,
    )
    assert refusal.limit and stack.draft.calls == stack.target.calls == []


async def test_a_prompt_over_the_context(stack):
    refusal = await stack.refused([1] * CONTEXT, route=KV)
    assert (refusal.reason, refusal.field) == ("PROMPT_TOO_LONG", "prompt")
    assert (await stack.ask([1] * CONTEXT, route=KV_PC)).decision.kept_tokens == CASCADE


async def test_an_engine_that_cannot_says_why(open_stack):
    why = ((KV, "hook Req.init_next_round_input is missing"), (77, "of a newer target"))
    stack = await open_stack(routes=ALL_ROUTES[:2], unsupported=why)
    refusal = await stack.refused(LONG, route=KV)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "ROUTE_UNSUPPORTED")
    assert "init_next_round_input" in refusal.message and "served: full, spec_pc" in refusal.message


async def test_a_route_the_target_stops_supporting_is_reported(stack):
    stack.target.faults.append(raises(RouteUnsupported("kv_plan", "set", "unset", "the plugin lost a hook")))
    refusal = await stack.refused(LONG, route=KV)
    assert (refusal.reason, refusal.message) == ("ROUTE_UNSUPPORTED", "the plugin lost a hook")


async def test_what_the_target_refuses_of_sampling_reaches_the_caller(stack):
    stack.target.faults.append(raises(InvalidRequest("sampling.seed", 1, "unset with a kv_plan")))
    refusal = await stack.refused(LONG, route=KV)
    assert (refusal.reason, refusal.field) == ("INVALID_REQUEST", "sampling.seed")


def mask_of(indices):
    def spoil(reply, request):
        reply.token_mask.kept = bits(indices, 100)

    return spoil


def lookahead_of(*token_ids):
    def spoil(reply, request):
        reply.lookahead_token_ids[:] = token_ids

    return spoil


DRAWN = keep(100, KV_CAPACITY + 1, KV_WINDOW + 1, [(50, 52)])
BAD_ANSWERS = {
    "drops a token": (KV, TARGET, mask_of([i for i in range(100) if i != 5])),
    "a token of no vocabulary": (KV, TARGET, lookahead_of(1, VOCABULARY)),
    "too long a lookahead": (KV, TARGET, lookahead_of(*range(LOOKAHEAD + 1))),
    "mask drops protected": (KV, MASK, mask_of([*(i for i in DRAWN if i != 51), 60])),
    "mask drops the window": (KV, MASK, mask_of([*(i for i in DRAWN if i != 96), 60])),
    "mask drops the final token": (KV, MASK, mask_of([*(i for i in DRAWN if i != 99), 60])),
    "mask over the capacity": (KV, MASK, mask_of([*DRAWN, 60])),
    "mask below the capacity": (KV, MASK, mask_of([i for i in DRAWN if i != 0])),
    "mask keeps everything": (KV, MASK, mask_of(range(100))),
    "prompt over the capacity": (KV_PC, TARGET, mask_of(range(75, 100))),
    "prompt drops protected": (KV_PC, TARGET, mask_of(range(80, 100))),
    "cascade's lookahead too long": (KV_PC, TARGET, lookahead_of(*range(LOOKAHEAD + 1))),
    "cascade's lookahead of no vocabulary": (KV_PC, TARGET, lookahead_of(VOCABULARY)),
}


@pytest.mark.parametrize(("route", "selection", "spoil"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_bad_answer_of_the_draft_is_not_applied_and_not_cached(stack, route, selection, spoil):
    asked = {"route": route, "kv": {"selection": selection}, "spans": [(50, 52)]}
    stack.draft.spoil = spoil
    answer = await stack.ask(LONG, **asked)
    assert (answer.route, answer.reason) == ("FULL", "MASK_REJECTED")
    assert list(stack.target.calls[0].token_ids) == LONG and not stack.target.calls[0].HasField("kv_plan")
    assert not answer.decision.HasField("keep_full_prefix") and answer.decision.kv_tokens == 100
    stack.draft.spoil = lambda reply, request: None
    answer = await stack.ask(LONG, **asked)
    assert (answer.reason, answer.cache) == ("REQUESTED", "MISS")


async def test_a_lookahead_that_ended_early_is_fine(stack):
    stack.draft.spoil = lookahead_of(5)
    await stack.ask(LONG, route=KV)
    assert list(stack.target.calls[0].kv_plan.lookahead_token_ids) == [5]


class OddStore:
    """A store whose value verifies and yet breaks a rule of these routes."""

    is_available = True

    def __init__(self, indices, ahead):
        mask = token_mask(indices, 100)
        self.value = CompressedPrompt(mask, tuple(ahead), None, model_from_wire(model("draft")))

    async def get(self, digest):
        return self.value

    async def put(self, digest, value):
        return None

    async def aclose(self):
        return None


@pytest.mark.parametrize(
    ("indices", "ahead"), [(range(99), [1]), (range(100), [VOCABULARY]), (range(100), [1] * (LOOKAHEAD + 1))]
)
async def test_a_cached_answer_is_checked_too(open_stack, indices, ahead):
    stack = await open_stack(routes=ALL_ROUTES, store=OddStore(indices, ahead))
    assert (await stack.ask(LONG, route=KV)).cache == "MISS"
    assert list(stack.target.calls[0].kv_plan.lookahead_token_ids) == lookahead(LOOKAHEAD)


VARIANTS = {
    "capacity": {"budget": {"max_kv_tokens": 15}},
    "lookahead": {"kv": {"lookahead_tokens": 3}},
    "selection": {"kv": {"selection": MASK}},
    "route": {"route": KV_PC},
    "protected spans": {"spans": [(3, 4)]},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
async def test_what_changes_the_value_changes_the_key(stack, variant):
    await stack.ask(LONG, route=KV)
    assert (await stack.ask(LONG, **{"route": KV} | variant)).cache == "MISS"
    assert (await stack.ask(LONG, route=KV)).cache == "HIT"


async def test_keep_full_prefix_changes_no_value(stack):
    await stack.ask(LONG, route=KV)
    assert (await stack.ask(LONG, route=KV, kv={"keep_full_prefix": False})).cache == "HIT"


async def explained(stack, **asked):
    kv = orchestrator_pb2.KvOptions(**asked.pop("kv", {}))
    return await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), kv=kv, **asked))


async def test_explain(stack):
    told = {
        "target": await explained(stack, route=KV),
        "mask": await explained(stack, route=KV, kv={"selection": MASK}),
        "cascade": await explained(stack, route=KV_PC),
    }
    kept = {name: sum(s.tokens.end - s.tokens.start for s in each.spans if s.kept) for name, each in told.items()}
    assert kept == {"target": 100, "mask": KV_CAPACITY + 1, "cascade": CASCADE}
    assert all(sum(span.importance for span in each.spans) == pytest.approx(1) for each in told.values())
    assert stack.target.calls == stack.target.prefills == []
    for name, asked in {"target": {"route": KV}, "cascade": {"route": KV_PC}}.items():
        decision = (await stack.ask(LONG, **asked)).decision
        assert told[name].decision.policy == decision.policy and told[name].decision.detail == decision.detail
        assert told[name].decision.kv_tokens == decision.kv_tokens


async def test_explain_asks_for_importance_as_for_a_mask(stack):
    told = await explained(stack, route=KV)
    (score,) = stack.draft.calls
    assert score.include_importance and score.policy.spec_kv.mask.start_layer == stack.draft.model.layers // 2
    assert not told.decision.policy.spec_kv.HasField("mask")


async def test_explain_refuses_the_same(stack):
    refusal = await refusal_of(explained(stack, route=KV_PC, kv={"selection": MASK}))
    assert (refusal.reason, refusal.field) == ("INVALID_REQUEST", "kv.selection")


async def test_what_is_counted(stack, telemetry):
    def told():
        kv, read = (
            [telemetry.total(f"presift.{what}.tokens", route="spec_kv", fate=fate) for fate in fates]
            for what, fates in (("kv", ("held", "dropped")), ("prompt", ("kept", "dropped")))
        )
        return [*kv, *read, telemetry.total("presift.entries.reused", route="spec_kv")]

    before = told()
    await stack.ask(LONG, route=KV)
    await stack.ask(LONG, route=KV)
    held = KV_CAPACITY + 1
    assert [b - a for a, b in zip(before, told(), strict=True)] == [2 * held, 2 * (100 - held), 200, 0, 1]


async def test_what_the_target_says_of_a_selection_is_recorded_where_one_was_made(stack, telemetry):
    """Once for each entry: a reply that reuses one says nothing new."""

    def told():
        return telemetry.total("presift.coverage", route="spec_kv", of="kv")

    for route, prompt, more in (
        (KV, LONG, 1),
        (KV, LONG, 0),
        (KV, [7, *LONG], 1),
        (plan_pb2.ROUTE_FULL, LONG, 0),
        (plan_pb2.ROUTE_SPEC_PC, LONG, 0),
    ):
        before = told()
        answer = await stack.ask(prompt, route=route)
        assert answer.usage.reused_entry is (route == KV and not more)
        assert told() == before + more


async def test_the_coverage_of_a_reused_entry_is_not_recorded_again(stack, telemetry):
    """The plugin remembers coverage, and tells it again."""
    selected = stack.target._selected

    def tells(request):
        usage = selected(request)
        usage.coverage = 0.75
        return usage

    stack.target._selected = tells
    await stack.ask(LONG, route=KV)
    before = telemetry.total("presift.coverage")
    answer = await stack.ask(LONG, route=KV)
    assert answer.usage.reused_entry and answer.usage.coverage == 0.75
    assert telemetry.total("presift.coverage") == before
