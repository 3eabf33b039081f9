"""KV plans refuse what cannot be carried out, and say which field, what it was and what it may be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import BudgetExceeded, InvalidRequest
from presift.core.kv_plan import MAX_KERNEL_TOKENS, KvPlan, check_plan
from presift.core.masks import KvMask
from presift.core.policies import Adaptive, KvSelection, SpecKv
from presift.core.spans import Span

LOOKAHEAD, DRAFT_MASK = KvSelection
LAYERS, KV_HEADS = 3, 2
PROMPT = 20
POLICY = SpecKv(capacity=8, window=3, lookahead_tokens=4)


def check(plan, prompt_tokens=PROMPT, page_tokens=1):
    return check_plan(plan, prompt_tokens, layers=LAYERS, kv_heads=KV_HEADS, page_tokens=page_tokens)


def masked(flags, protected=(), **policy):
    policy = SpecKv(**{"capacity": 8, "window": 3, "selection": DRAFT_MASK} | policy)
    return KvPlan(policy, protected, kv_mask=KvMask(flags))


def flags(shape=(1, 1), tokens=(0, 1, 2, 3, 4, 16, 17, 18, 19), prompt_tokens=PROMPT):
    """By default five of the first, the window and the final token: 8 KV pairs."""
    kept = np.zeros((*shape, prompt_tokens), dtype=bool)
    kept[..., list(tokens)] = True
    return kept


def refusal_of(what, *arguments, kind=InvalidRequest, **named):
    with pytest.raises(kind) as refusal:
        what(*arguments, **named)
    error = refusal.value
    assert str(error.value) in str(error) and str(error.limit) in str(error)
    return error.field, error.value, error.limit


def test_a_plan_of_all_defaults():
    plan = KvPlan(POLICY)
    assert (plan.protected, plan.lookahead_token_ids, plan.kv_mask, plan.prompt_tokens) == ((), (), None, 0)
    assert (plan.keep_full_prefix, plan.report_kept) == (True, False)


def test_the_widest_kernel():
    KvPlan(SpecKv(capacity=64, kernel=MAX_KERNEL_TOKENS))
    wider = SpecKv(capacity=64, kernel=MAX_KERNEL_TOKENS + 2)
    assert refusal_of(KvPlan, wider) == ("spec_kv.kernel", 1027, "<= 1025")


def test_a_mask_comes_with_draft_mask_alone():
    wanted = SpecKv(capacity=8, window=3, selection=DRAFT_MASK)
    assert refusal_of(KvPlan, wanted) == ("kv_plan.kv_mask", "unset", "set with selection draft_mask")
    unwanted = {"kv_mask": KvMask(flags())}
    limit = "unset with selection target_lookahead"
    assert refusal_of(KvPlan, POLICY, **unwanted) == ("kv_plan.kv_mask", "set", limit)


def test_a_lookahead_comes_with_target_lookahead_alone():
    policy = SpecKv(capacity=8, window=3, selection=DRAFT_MASK)
    refused = refusal_of(KvPlan, policy, lookahead_token_ids=(1,), kv_mask=KvMask(flags()))
    assert refused == ("kv_plan.lookahead_token_ids", "set", "empty with selection draft_mask")


def test_the_lookahead_is_bounded_by_the_policy():
    KvPlan(POLICY, lookahead_token_ids=(7,) * 4)
    field, value, limit = refusal_of(KvPlan, POLICY, lookahead_token_ids=(7,) * 5)
    assert (field, value) == ("kv_plan.lookahead_token_ids", "5 tokens")
    assert limit.startswith("<= 4")


def test_the_prompt_is_all_or_the_first_tokens_of_what_is_sent():
    assert KvPlan(POLICY).covered_tokens(50) == 50
    assert KvPlan(POLICY, prompt_tokens=50).covered_tokens(50) == 50
    assert KvPlan(POLICY, prompt_tokens=30).covered_tokens(50) == 30
    refused = refusal_of(KvPlan(POLICY, prompt_tokens=51).covered_tokens, 50)
    assert refused == ("kv_plan.prompt_tokens", 51, "<= 50, the tokens sent")


@pytest.mark.parametrize(("capacity", "page_tokens", "whole"), [(8, 1, 8), (8, 4, 8), (11, 4, 8), (7, 2, 6)])
def test_the_capacity_is_whole_pages(capacity, page_tokens, whole):
    plan = KvPlan(SpecKv(capacity=capacity, window=3))
    assert plan.capacity_for(page_tokens) == whole
    assert check(plan, 100, page_tokens) == whole


@pytest.mark.parametrize(("capacity", "page_tokens"), [(7, 4), (8, 16)])
def test_whole_pages_must_leave_room_beside_the_window(capacity, page_tokens):
    plan = KvPlan(SpecKv(capacity=capacity, window=4))
    assert check(plan, 100) == capacity
    refused = refusal_of(check, plan, 100, page_tokens)
    assert refused == ("spec_kv.capacity", capacity, f"> window (4) in whole pages of {page_tokens}")


def test_rounding_decides_whether_a_prompt_fits():
    plan = KvPlan(SpecKv(capacity=11, window=3))
    assert check(plan, 11) == 10
    assert check(plan, 11, page_tokens=4) == 8


@pytest.mark.parametrize(("prompt_tokens", "kept"), [(1, 0), (7, 6), (8, 7), (9, 8), (10, 8)])
def test_a_prompt_within_the_capacity_keeps_all(prompt_tokens, kept):
    assert check(KvPlan(POLICY), prompt_tokens) == kept


def test_in_a_prompt_that_fits_nothing_is_dropped_whatever_the_mask():
    wrong = masked(flags((7, 7), (0,), 5), protected=(Span(0, 8),))
    assert check(wrong, 8) == 7


def test_a_protected_span_beyond_the_prompt():
    field, value, limit = refusal_of(check, KvPlan(POLICY, (Span(0, 2), Span(19, 21))))
    assert (field, value) == ("protected_spans", "[19, 21)")
    assert limit.startswith("end <= 20")
    assert refusal_of(check, KvPlan(POLICY, (Span(7, 9),)), 8)[0] == "protected_spans"


def test_protected_spans_and_window_must_fit_the_capacity():
    assert check(KvPlan(POLICY, (Span(0, 5),))) == 8
    refused = refusal_of(check, KvPlan(POLICY, (Span(0, 6),)), kind=BudgetExceeded)
    assert refused == ("protected_spans", 9, "<= capacity (8) tokens, the window included")


def test_what_lies_in_two_spans_in_the_window_or_at_the_end_is_counted_once():
    assert check(KvPlan(POLICY, (Span(0, 4), Span(2, 5), Span(17, 20)))) == 8


def test_the_budget_is_that_of_whole_pages():
    plan = KvPlan(SpecKv(capacity=11, window=3), (Span(0, 8),))
    assert check(plan) == 11
    field, value, limit = refusal_of(check, plan, page_tokens=4, kind=BudgetExceeded)
    assert (field, value) == ("protected_spans", 11)
    assert limit.startswith("<= capacity (8)")


def test_must_keep_is_the_protected_spans_and_the_window_before_the_final_token():
    kept = KvPlan(POLICY, (Span(2, 4), Span(18, 20))).must_keep(PROMPT)
    assert kept.shape == (PROMPT - 1,)
    assert np.flatnonzero(kept).tolist() == [2, 3, 16, 17, 18]


@pytest.mark.parametrize("shape", [(1, 1), (LAYERS, 1), (1, KV_HEADS), (LAYERS, KV_HEADS)])
def test_a_mask_is_uniform_or_of_the_model(shape):
    assert check(masked(flags(shape))) == 8


def test_a_mask_may_keep_less_than_the_capacity_and_the_final_token_is_not_counted():
    for tokens in ((0, 16, 17, 18, 19), (0, 16, 17, 18)):
        assert check(masked(flags(tokens=tokens))) == 4


@pytest.mark.parametrize(
    ("shape", "limit"),
    [((2, 1), "1 or 3 on axis 0"), ((4, KV_HEADS), "1 or 3 on axis 0"), ((LAYERS, 3), "1 or 2 on axis 1")],
)
def test_a_mask_of_another_model(shape, limit):
    assert refusal_of(check, masked(flags(shape))) == ("kv_plan.kv_mask", f"shape {(*shape, PROMPT)}", limit)


@pytest.mark.parametrize("prompt_tokens", [PROMPT - 1, PROMPT + 1])
def test_a_mask_of_another_prompt(prompt_tokens):
    wrong = masked(flags(prompt_tokens=prompt_tokens, tokens=range(9)))
    assert refusal_of(check, wrong) == ("kv_plan.kv_mask", f"{prompt_tokens} tokens", "20, the prompt's")


def test_a_mask_must_keep_as_many_in_every_head():
    uneven = flags((LAYERS, KV_HEADS))
    uneven[1, 1, 0] = False
    assert refusal_of(check, masked(uneven)) == ("kv_plan.kv_mask", "7..8 KV pairs per head", "as many in every head")


@pytest.mark.parametrize(
    ("tokens", "page_tokens", "count", "limit"),
    [
        (range(10, 20), 1, 9, "1..8 in whole pages of 1"),
        ((19,), 1, 0, "1..8 in whole pages of 1"),
        ((), 1, 0, "1..8 in whole pages of 1"),
        ((0, 1, 2, 16, 17, 18), 4, 6, "1..8 in whole pages of 4"),
    ],
)
def test_a_mask_must_keep_whole_pages_within_the_capacity(tokens, page_tokens, count, limit):
    refused = refusal_of(check, masked(flags(tokens=tokens)), page_tokens=page_tokens)
    assert refused == ("kv_plan.kv_mask", f"{count} KV pairs per head", limit)


def test_a_mask_must_keep_the_window_in_every_head():
    one_less = flags((LAYERS, KV_HEADS))
    one_less[2, 0, 17], one_less[2, 0, 9] = False, True
    wanted = ("kv_plan.kv_mask", "1 tokens dropped", "protected spans and window kept")
    assert refusal_of(check, masked(one_less)) == wanted


def test_a_mask_must_keep_the_protected_spans():
    plan = masked(flags(), protected=(Span(3, 7), Span(19, 20)))
    wanted = ("kv_plan.kv_mask", "2 tokens dropped", "protected spans and window kept")
    assert refusal_of(check, plan) == wanted
    assert check(masked(flags(), protected=(Span(0, 5), Span(18, 20)))) == 8


@st.composite
def plans(draw):
    """A plan with one protected span, and the length of a prompt that holds the span."""
    capacity, length = draw(st.integers(2, 60)), draw(st.integers(1, 10))
    window, prompt_tokens = draw(st.integers(1, capacity - 1)), draw(st.integers(length, 80))
    start = draw(st.integers(0, prompt_tokens - length))
    return KvPlan(SpecKv(capacity=capacity, window=window), (Span(start, start + length),)), prompt_tokens


@given(plans(), st.integers(1, 9))
def test_what_is_accepted_can_be_kept(planned, page_tokens):
    plan, prompt_tokens = planned
    try:
        kept = check(plan, prompt_tokens, page_tokens)
    except (InvalidRequest, BudgetExceeded):
        return
    assert 0 <= kept < prompt_tokens
    assert kept == prompt_tokens - 1 or kept % page_tokens == 0
    assert kept <= plan.policy.capacity
    assert plan.must_keep(prompt_tokens).sum() <= kept


def test_a_capacity_that_still_adapts_is_no_plan():
    with pytest.raises(InvalidRequest) as refusal:
        KvPlan(SpecKv(10, window=3, adaptive=Adaptive(0.9, 5)))
    assert refusal.value.field == "kv_plan.policy.adaptive"


RENEWING = SpecKv(capacity=8, window=3, renew_every=4, renew_window=6)


def test_renewal_needs_the_full_prefix_and_changes_what_is_kept():
    KvPlan(RENEWING)
    for field, others in (("keep_full_prefix", {"keep_full_prefix": False}), ("report_kept", {"report_kept": True})):
        with pytest.raises(InvalidRequest) as refusal:
            KvPlan(RENEWING, **others)
        assert refusal.value.field == f"kv_plan.{field}"


def test_the_first_tokens_on_the_full_kv_leave_nothing_for_a_lookahead_to_select():
    policy = SpecKv(capacity=8, window=3, first_full_tokens=4, renew_window=6)
    KvPlan(policy)
    with pytest.raises(InvalidRequest, match="first_full_tokens"):
        KvPlan(policy, lookahead_token_ids=(1,))


def test_protected_spans_and_the_window_of_a_renewal_must_fit_too():
    assert check(KvPlan(RENEWING, (Span(0, 2),))) == 8
    with pytest.raises(BudgetExceeded, match="renew_window") as refusal:
        check(KvPlan(RENEWING, (Span(0, 3),)))
    assert refusal.value.value == 9


def test_a_draft_mask_must_hold_the_window_of_a_renewal():
    def renewing(tokens):
        return masked(flags(tokens=tokens), renew_every=4, renew_window=6)

    assert check(renewing((0, 1, 2, 16, 17, 18, 19))) == 6
    with pytest.raises(BudgetExceeded, match="renew_window"):
        check(renewing((0, 1, 16, 17, 18, 19)))
