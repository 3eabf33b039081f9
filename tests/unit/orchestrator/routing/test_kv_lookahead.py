"""Who makes the lookahead, what renews KV, and what both cost."""

from dataclasses import replace

import pytest

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.plan import Route
from presift.core.policies import KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.core.spans import Span
from presift.orchestrator.domain.request import AutoCapacity, Budget, KvLookahead, KvOptions, Request, Text
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import (
    CostCurve,
    RenewalWork,
    RouteWork,
    StageCosts,
    SystemState,
    TokenWork,
)
from presift.orchestrator.routing.forecast import work_of
from presift.orchestrator.routing.kv_routes import continue_kv, without_draft
from presift.orchestrator.routing.router import choose

from ....builders import COSTS, DEFAULTS, KV, KV_PC, routing_inputs, token_mask

DRAFT, TARGET, AUTO = KvLookahead
BY_TARGET = SpecKv(50, window=8, lookahead_tokens=0, renew_window=32, first_full_tokens=16)
BY_DRAFT = DEFAULTS.spec_kv


def defaults(lookahead=TARGET, **changes):
    return replace(DEFAULTS, lookahead=lookahead, **changes)


def kv(by_default=TARGET, wanted=KV, settings=None, **changes):
    return choose(routing_inputs(wanted=wanted, defaults=defaults(by_default, **(settings or {})), **changes))


def test_the_target_looks_ahead_without_a_draft():
    choice = kv()
    assert (choice.route, choice.reason, choice.policy, choice.keep_full_prefix) == (
        KV,
        Reason.REQUESTED,
        BY_TARGET,
        True,
    )
    assert not choice.policy.needs_draft and choice.detail == "keeps 51 KV tokens"
    assert kv(DRAFT).policy == BY_DRAFT and BY_DRAFT.needs_draft


def test_the_cascade_needs_the_draft_for_its_prompt_alone():
    choice = kv(wanted=KV_PC)
    assert choice.policy == SpecKvPc(replace(DEFAULTS.spec_pc, capacity=200), BY_TARGET)
    assert choice.policy.needs_draft and choice.policy.draft_steps == 0 and choice.keep_full_prefix
    assert not kv(DRAFT, wanted=KV_PC).keep_full_prefix


NEEDING_A_DRAFT = {
    "mask": {"selection": KvSelection.DRAFT_MASK},
    "lookahead tokens": {"lookahead_tokens": 9},
    "coverage": {"min_coverage": 0.8},
    "adaptive": {"auto_capacity": AutoCapacity(0.9)},
    "the prefix is not kept": {"keep_full_prefix": False},
    "a strict limit": {"max_kv_tokens": 51, "strict": True},
}


@pytest.mark.parametrize("lookahead", [TARGET, AUTO])
@pytest.mark.parametrize("changes", NEEDING_A_DRAFT.values(), ids=NEEDING_A_DRAFT)
def test_what_needs_the_draft_gets_its_lookahead(changes, lookahead):
    policy = kv(lookahead, **changes).policy
    assert policy.needs_draft and not policy.renews
    assert policy == kv(DRAFT, **changes).policy


@pytest.mark.parametrize("asked", [{"lookahead": TARGET}, {"first_full_tokens": 16}], ids=str)
def test_the_caller_may_ask_for_the_targets_lookahead(asked):
    mask = {"spec_kv": replace(DEFAULTS.spec_kv, selection=KvSelection.DRAFT_MASK)}
    for settings in ({}, mask):
        assert kv(DRAFT, settings=settings, **asked).policy == BY_TARGET
    assert kv(TARGET, **asked, lookahead_tokens=0).policy == BY_TARGET


@pytest.mark.parametrize("lookahead", [TARGET, AUTO])
def test_the_caller_may_ask_for_the_window_alone(lookahead):
    window = replace(BY_DRAFT, lookahead_tokens=0)
    assert kv(lookahead, lookahead_tokens=0).policy == window
    assert kv(lookahead, lookahead=AUTO, lookahead_tokens=0).policy == window and not window.needs_draft


def test_the_caller_may_ask_for_the_drafts_lookahead():
    assert kv(TARGET, lookahead=DRAFT).policy == BY_DRAFT


def test_options_override_the_settings():
    settings = {"first_full_tokens": 5, "renew_every": 12, "renew_window": 20}
    policy = kv(settings=settings).policy
    assert (policy.first_full_tokens, policy.renew_every, policy.renew_window) == (5, 12, 20)
    policy = kv(settings=settings, first_full_tokens=7, renew_every=0, renew_window=9).policy
    assert (policy.first_full_tokens, policy.renew_every, policy.renew_window) == (7, 0, 9)


def test_renewal_with_the_drafts_lookahead():
    policy = kv(DRAFT, renew_every=12).policy
    assert policy == replace(BY_DRAFT, renew_every=12) and policy.entry_policy == BY_DRAFT
    mask = kv(DRAFT, renew_every=12, selection=KvSelection.DRAFT_MASK).policy
    assert (mask.renew_every, mask.selection) == (12, KvSelection.DRAFT_MASK)
    assert kv(DRAFT, wanted=KV_PC, renew_every=12).keep_full_prefix


def test_a_prefix_that_is_not_kept_turns_the_default_renewal_off():
    choice = kv(DRAFT, settings={"renew_every": 12}, keep_full_prefix=False)
    assert (choice.policy, choice.keep_full_prefix) == (BY_DRAFT, False)


@pytest.mark.parametrize(("capacity", "must_keep_kv", "window"), [(50, 8, 32), (33, 8, 32), (32, 8, 31), (9, 8, 8),
                                                                  (40, 30, 18), (40, 40, 8)])  # fmt: skip
def test_the_window_of_renewals_leaves_room_for_what_must_be_kept(capacity, must_keep_kv, window):
    policy = kv(DRAFT, renew_every=12, max_kv_tokens=capacity + 1, must_keep_kv=must_keep_kv).policy
    assert (policy.capacity, policy.renew_window) == (capacity, window)


def test_the_window_of_renewals_fits_the_least_that_an_adaptive_capacity_becomes():
    policy = kv(DRAFT, renew_every=12, auto_capacity=AutoCapacity(0.9, min_tokens=21)).policy
    assert (policy.adaptive.min_capacity, policy.renew_window) == (20, 19)


# AUTO: the draft's 1 ms a token runs before or beside the target's 10.
def test_auto_takes_the_target_where_it_is_sooner():
    assert kv(AUTO).policy == BY_TARGET
    known = SystemState(COSTS, cached_tokens=999, compressed=((BY_DRAFT, 0),), entries=frozenset({BY_DRAFT}))
    by_megapair = replace(COSTS, target=CostCurve(0.0, 10.0, 1.0, observations=1))
    assert kv(AUTO, state=replace(known, costs=by_megapair)).policy == BY_DRAFT


def test_auto_takes_the_draft_in_a_tie():
    known = SystemState(COSTS, cached_tokens=999, compressed=((BY_DRAFT, 0),), entries=frozenset({BY_DRAFT}))
    assert kv(AUTO, state=known).policy == BY_DRAFT
    assert kv(AUTO, state=known, draft_looks_ahead=False).policy == BY_TARGET
    assert kv(AUTO, state=known, draft_context_tokens=999).policy == BY_DRAFT  # its compressed prompt exists


def test_auto_takes_the_target_where_the_draft_cannot_read_the_prompt():
    costs = replace(
        COSTS, draft=CostCurve(0.0, 0.0, 0.0), target=CostCurve(0.0, 0.0, 0.0), selection=CostCurve(0, 0, 0)
    )
    assert kv(AUTO, state=SystemState(costs)).policy == BY_DRAFT
    assert kv(AUTO, state=SystemState(costs), draft_context_tokens=999).policy == BY_TARGET


def test_a_pool_without_room_for_the_lookahead_has_room_without_it():
    needed = 1000 + 50 + 1 + 2
    assert kv(DRAFT, kv_pool_tokens=needed + 1).reason is Reason.KV_POOL_TOO_SMALL
    assert kv(AUTO, kv_pool_tokens=needed + 1).policy == kv(kv_pool_tokens=needed + 1).policy == BY_TARGET
    assert kv(kv_pool_tokens=needed).reason is Reason.KV_POOL_TOO_SMALL


def test_route_auto_considers_the_targets_lookahead():
    choice = kv(wanted=None, max_kv_tokens=51)
    assert (choice.route, choice.reason, choice.policy) == (KV, Reason.OVER_BUDGET, BY_TARGET)
    assert kv(wanted=None).route is not KV  # as late as full, so without a limit it gains nothing


def test_what_a_failed_draft_leaves():
    choice, by_auto = kv(DRAFT), routing_inputs(defaults=defaults(AUTO))
    instead = without_draft(choice, by_auto)
    assert (instead.route, instead.reason, instead.policy, instead.keep_full_prefix) == (
        KV,
        Reason.REQUESTED,
        BY_TARGET,
        True,
    )
    for inputs in (
        routing_inputs(),
        routing_inputs(by_auto, min_coverage=0.5),
        routing_inputs(by_auto, max_kv_tokens=51, strict=True),
    ):
        assert without_draft(choice, inputs) is None
    assert without_draft(kv(DRAFT, wanted=KV_PC), by_auto) is None
    assert without_draft(kv(DRAFT, wanted=Route.SPEC_PC), by_auto) is None


CONTRADICTIONS = {
    "lookahead": ({"lookahead": DRAFT, "first_full_tokens": 4}, "kv.lookahead"),
    "mask": ({"lookahead": TARGET, "selection": KvSelection.DRAFT_MASK}, "kv.selection"),
    "mask and first tokens": ({"first_full_tokens": 4, "selection": KvSelection.DRAFT_MASK}, "kv.selection"),
    "lookahead tokens": ({"lookahead": TARGET, "lookahead_tokens": 1}, "kv.lookahead_tokens"),
    "later turn": ({"lookahead": TARGET, "continue_prompt_tokens": 9}, "kv.continue_prompt_tokens"),
    "later turn and first tokens": (
        {"first_full_tokens": 4, "continue_prompt_tokens": 9},
        "kv.continue_prompt_tokens",
    ),
    "prefix": ({"lookahead": TARGET, "keep_full_prefix": False}, "kv.keep_full_prefix"),
    "prefix and renewal": ({"renew_every": 1, "keep_full_prefix": False}, "kv.keep_full_prefix"),
    "first tokens": ({"first_full_tokens": 0}, "kv.first_full_tokens"),
    "renewal": ({"renew_every": -1}, "kv.renew_every"),
    "window": ({"renew_window": 0}, "kv.renew_window"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "field"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(options, field):
    with pytest.raises(InvalidRequest) as refusal:
        KvOptions(**options)
    assert refusal.value.field == field and all(refusal.value.details.values())


@pytest.mark.parametrize("budget", [{"min_coverage": 0.5}, {"auto_capacity": AutoCapacity(0.5)}], ids=str)
@pytest.mark.parametrize("asked", [{"lookahead": TARGET}, {"first_full_tokens": 4}], ids=str)
def test_a_coverage_is_refused_where_no_draft_is_asked(asked, budget):
    request = {"prompt": Text("why?"), "budget": Budget(**budget)}
    with pytest.raises(InvalidRequest) as refusal:
        Request(**request, kv=KvOptions(**asked))
    assert refusal.value.field == f"budget.{next(iter(budget))}" and "0.5" in refusal.value.message
    Request(**request, kv=KvOptions(lookahead=AUTO, renew_every=4))
    for route in (KV, KV_PC):
        with pytest.raises(InvalidRequest):
            Request(**request, kv=KvOptions(**asked), route=route)
    for route in (Route.FULL, Route.SPEC_PC):
        Request(**request, kv=KvOptions(**asked), route=route)


@pytest.mark.parametrize("asked", [{"lookahead": TARGET}, {"first_full_tokens": 4}], ids=str)
def test_a_strict_kv_limit_is_refused_where_the_answer_begins_on_the_full_kv(asked):
    with pytest.raises(InvalidRequest) as refusal:
        Request(Text("why?"), budget=Budget(max_kv_tokens=51, strict=True), kv=KvOptions(**asked))
    (option, value), limit = next(iter(asked.items())), refusal.value.details["limit"]
    assert (refusal.value.field, refusal.value.details["value"]) == ("budget.max_kv_tokens", "51")
    assert limit == f"unset or not strict with kv.{option} {value}: the answer begins on the full KV"
    for budget in (Budget(max_kv_tokens=51), Budget(max_prompt_tokens=51, strict=True)):
        Request(Text("why?"), budget=budget, kv=KvOptions(**asked))


def test_options_that_go_together():
    KvOptions(lookahead=DRAFT, renew_every=0, keep_full_prefix=False)
    KvOptions(lookahead=AUTO, first_full_tokens=4, renew_every=4, renew_window=4, keep_full_prefix=True)
    KvOptions(selection=KvSelection.DRAFT_MASK, renew_every=4)


RENEWING = KvPlan(replace(BY_DRAFT, renew_every=12), prompt_tokens=900)
PROTECTING = replace(RENEWING, protected=(Span(0, 12),))
MASKED = KvPlan(
    replace(BY_DRAFT, selection=KvSelection.DRAFT_MASK),
    kv_mask=KvMask.uniform(token_mask([*range(11), *range(891, 900)], 900)),
    prompt_tokens=900,
)


@pytest.mark.parametrize(
    ("plan", "options", "every", "window", "keep"),
    [
        (RENEWING, {}, 12, 32, True),
        (RENEWING, {"renew_every": 3}, 3, 32, True),
        (RENEWING, {"renew_window": 20}, 12, 20, True),
        (RENEWING, {"renew_window": 99}, 12, 49, True),
        (PROTECTING, {"renew_window": 99}, 12, 38, True),
        (MASKED, {"renew_every": 3, "renew_window": 99}, 3, 19, True),
        (KvPlan(BY_DRAFT, prompt_tokens=900), {"renew_every": 3, "renew_window": 20}, 3, 20, True),
        (RENEWING, {"renew_every": 0}, 0, 32, True),
        (RENEWING, {"keep_full_prefix": False}, 0, 32, False),
        (RENEWING, {"kv_page_tokens": 2}, 12, 32, True),
        (KvPlan(BY_DRAFT, prompt_tokens=900), {}, 0, 32, True),
        (KvPlan(BY_DRAFT, prompt_tokens=900, keep_full_prefix=False), {"renew_every": 3}, 3, 8, True),
    ],
)
def test_a_later_turn_renews_as_the_first_unless_it_asks_otherwise(plan, options, every, window, keep):
    choice = continue_kv(plan, routing_inputs(**options))
    assert (choice.policy.renew_every, choice.policy.renew_window, choice.keep_full_prefix) == (every, window, keep)
    assert choice.policy.entry_policy == plan.policy.entry_policy


# A draft of 1 ms a token, a target of 10, selecting 1 a million pairs, a step of 2 and half a ms for each token held.
CURVES = StageCosts(
    draft=CostCurve(0.0, 1.0, 0.0, observations=1),
    target=CostCurve(0.0, 10.0, 0.0, observations=1),
    selection=CostCurve(0.0, 0.0, 1.0, observations=1),
    decoding=CostCurve(2.0, 0.5, 0.0),
)


def work(policy, state=None, route=KV):
    return work_of(RouteChoice(route, Reason.REQUESTED, "", policy, True), 1000, state or SystemState())


def test_the_work_of_the_targets_lookahead_is_that_of_full_until_the_first_token():
    state = SystemState(CURVES, prefills=True, cached_tokens=400)
    found = work(replace(BY_TARGET, renew_every=10), state)
    assert found == RouteWork(TokenWork(600, 400), 1000, 51, renewal=RenewalWork(TokenWork(32, 1000), 10))
    assert found.slots == 1000 + 51
    forecast = state.forecast(found)
    assert forecast.ttft_ms == forecast.least_ms == 6000 and forecast.draft_ms == 0.0
    share_ms = (320 + 32 * 1016 / 1e6) / 10
    assert forecast.step_ms == pytest.approx(2 + 25.5 + share_ms)


def test_one_selection_is_spread_over_the_answer():
    state = SystemState(CURVES)
    assert state.forecast(work(BY_TARGET), 64).step_ms == pytest.approx(27.5 + (320 + 32 * 1016 / 1e6) / 64)
    assert state.forecast(work(BY_TARGET)).step_ms == pytest.approx(27.5 + 320 + 32 * 1016 / 1e6)


def test_renewal_costs_nothing_before_the_first_token():
    state, renewing = SystemState(CURVES), replace(BY_DRAFT, renew_every=10)
    once, again = work(BY_DRAFT), work(renewing)
    assert again == replace(once, renewal=RenewalWork(TokenWork(32, 1000), 10)) and again.slots == once.slots
    assert state.forecast(again).ttft_ms == state.forecast(once).ttft_ms
    assert state.forecast(again).step_ms > state.forecast(once).step_ms == 27.5


@pytest.mark.parametrize(
    ("every", "early", "per_token"),
    [(10, 0.0, 0.1), (10, 0.05, 0.15), (100, 0.05, 0.06), (10, 0.25, 0.25), (4, 0.1, 0.25), (2, 0.1, 0.5)],
    ids=str,
)
def test_early_renewals_are_added_to_those_of_the_interval(every, early, per_token):
    seen = SystemState(replace(CURVES, early_renewals=early))
    step_ms = seen.forecast(work(replace(BY_DRAFT, renew_every=every))).step_ms
    each_ms = SystemState(CURVES).forecast(work(replace(BY_DRAFT, renew_every=1))).step_ms - 27.5
    assert step_ms - 27.5 == pytest.approx(per_token * each_ms)
    # One selection is one.
    assert seen.forecast(work(BY_TARGET), 64) == SystemState(CURVES).forecast(work(BY_TARGET), 64)


def test_compressed_prompts_and_entries_are_found_whatever_renews():
    known = SystemState(CURVES, compressed=((BY_DRAFT, 0),), entries=frozenset({BY_DRAFT}))
    found = work(replace(BY_DRAFT, renew_every=10, renew_window=9), known)
    assert found == RouteWork(TokenWork(1, 50), 1000, 51, renewal=RenewalWork(TokenWork(9, 1000), 10))
    both = SpecKvPc(SpecPc(200, window=10), replace(BY_DRAFT, renew_every=10))
    cascade = SystemState(CURVES, compressed=((both.entry_policy, 0),))
    assert work(both, cascade, KV_PC).draft is None and both.entry_policy.kv == BY_DRAFT


def test_a_first_selection_that_leaves_no_entry_finds_none():
    warm = SystemState(CURVES, cached_tokens=999, entries=frozenset({BY_TARGET.entry_policy}))
    assert work(BY_TARGET, warm).target == TokenWork(1, 999)
