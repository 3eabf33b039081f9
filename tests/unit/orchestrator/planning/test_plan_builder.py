"""From a choice and the draft's answer to the tokens that the target reads and the KV that it keeps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from presift.core.kv_plan import check_plan
from presift.core.plan import CompressedPrompt, ModelInfo, Route
from presift.core.policies import KvSelection, SpecKv, SpecKvPc, SpecPc
from presift.core.spans import Span, covered, moved, must_keep
from presift.orchestrator.planning.compressor import CompressionResult
from presift.orchestrator.planning.draft_stage import DraftResult
from presift.orchestrator.planning.plan_builder import (
    compressed_plan,
    continued_plan,
    kv_plan_of,
    stored_selection,
    undrafted_plan,
)
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.decision import CacheOutcome

from ....builders import request_context, token_mask

MODEL = ModelInfo("m", "r", "f", 100, 2, 2, 100)
IDS = np.arange(50, 80, dtype=np.uint32)
CONTEXT = request_context(IDS, (Span(0, 2), Span(10, 14)), MODEL)
TOKENS = CONTEXT.tokens


def prompt(kept, lookahead=(7, 8)):
    return CompressedPrompt(token_mask(kept, 30), lookahead, 0.5, MODEL)


def choice(route, policy, keep=True):
    return RouteChoice(route, Reason.REQUESTED, "", policy, keep)


def compressed(choice, answer, **reported):
    """The plan of CONTEXT for this choice and this answer of the draft."""
    result = CompressionResult(answer, CacheOutcome.MISS, 2.0, 3.0)
    return compressed_plan(CONTEXT, DraftResult(choice, result, **reported))


def test_spec_kv_reads_all_and_keeps_some():
    plan = compressed(choice(Route.SPEC_KV, SpecKv(9, window=3)), prompt(range(30)), prefill_ms=4.0)
    assert plan.read_ids.tolist() == IDS.tolist() and plan.kept_mask.all()
    kv_plan, decision = plan.kv_plan, plan.decision
    assert (kv_plan.lookahead_token_ids, kv_plan.protected, kv_plan.kv_mask) == ((7, 8), TOKENS.protected, None)
    assert (decision.kept_tokens, decision.kv_tokens, decision.prefill_ms) == (30, 10, 4.0)
    assert check_plan(kv_plan, 30, layers=2, kv_heads=2) == 9


def test_draft_mask_reads_all_and_keeps_the_mask():
    policy = SpecKv(8, window=2, selection=KvSelection.DRAFT_MASK)
    kept = [0, 1, 10, 11, 12, 13, 27, 28, 29]
    plan = compressed(choice(Route.SPEC_KV, policy), prompt(kept, ()))
    assert plan.read_ids.size == 30 and np.flatnonzero(plan.kept_mask).tolist() == kept
    assert plan.kv_plan.kv_mask.kept[0, 0].tolist() == plan.kept_mask.tolist()
    assert (plan.decision.kept_tokens, plan.decision.kv_tokens) == (30, 9)
    assert check_plan(plan.kv_plan, 30, layers=2, kv_heads=2) == 8


KEPT = [0, 1, 5, 6, 10, 11, 12, 13, 20, 21, 26, 27, 28, 29]


def test_spec_kv_pc_reads_the_kept_and_moves_the_protected():
    policy = SpecKvPc(SpecPc(14, window=4), SpecKv(9, window=3))
    plan = compressed(choice(Route.SPEC_KV_PC, policy, False), prompt(KEPT))
    assert plan.read_ids.tolist() == [int(IDS[i]) for i in KEPT]
    assert plan.kv_plan.protected == (Span(0, 2), Span(4, 8)) and plan.kv_plan.keep_full_prefix is False
    assert (plan.decision.kept_tokens, plan.decision.kv_tokens) == (14, 10)
    assert check_plan(plan.kv_plan, 14, layers=2, kv_heads=2) == 9


@pytest.mark.parametrize(("capacity", "drops"), [(12, True), (13, False), (40, False)])
def test_a_second_stage_that_drops_nothing_has_no_plan(capacity, drops):
    policy = SpecKvPc(SpecPc(14, window=4), SpecKv(capacity, window=3))
    plan = compressed(choice(Route.SPEC_KV_PC, policy), prompt(KEPT))
    assert (plan.kv_plan is not None) is drops
    assert plan.decision.kv_tokens == (capacity + 1 if drops else 14)


def test_spec_pc_and_full_have_no_kv_plan():
    assert kv_plan_of(choice(Route.SPEC_PC, SpecPc(14, window=4)), prompt(KEPT), TOKENS) is None
    assert undrafted_plan(CONTEXT, choice(Route.FULL, None, None)).kv_plan is None


def test_adjacent_moved_spans_are_merged():
    kept = np.zeros(30, dtype=bool)
    kept[[0, 1, 10, 11, 12, 13, 29]] = True
    assert moved((Span(0, 2), Span(10, 14)), kept) == (Span(0, 6),)


@given(data=st.data(), kept=st_numpy.arrays(np.bool_, st.integers(2, 60)))
def test_moved_spans_cover_the_same_tokens(data, kept):
    protected = data.draw(st_numpy.arrays(np.bool_, kept.size))
    spans = tuple(Span(int(i), int(i) + 1) for i in np.flatnonzero(protected))
    kept = kept | protected
    ids = np.arange(kept.size)
    there = covered(moved(spans, kept), int(kept.sum())) if spans else np.zeros(int(kept.sum()), dtype=bool)
    assert ids[kept][there].tolist() == np.flatnonzero(protected).tolist()


@given(data=st.data(), n=st.integers(8, 60), window=st.integers(1, 5))
def test_protected_tokens_that_fit_before_compression_fit_after(data, n, window):
    """The bound of the cascade's second stage, counted on the whole prompt, also holds for the kept tokens."""
    flags = data.draw(st_numpy.arrays(np.bool_, n))
    spans = tuple(Span(int(i), int(i) + 1) for i in np.flatnonzero(flags))
    kept = flags | data.draw(st_numpy.arrays(np.bool_, n))
    kept[-1] = True
    read = int(kept.sum())
    if read > window + 1:
        assert must_keep(moved(spans, kept), read, window + 1).sum() <= must_keep(spans, n, window + 1).sum()


def test_a_later_turn_continues_the_earlier_selection():
    policy = SpecKv(8, window=2, selection=KvSelection.DRAFT_MASK)
    kept = [0, 1, 10, 11, 12, 13, 27, 28, 29]
    first = compressed(choice(Route.SPEC_KV, policy), prompt(kept, ()))
    stored = stored_selection(first)
    assert stored.kv_plan.prompt_tokens == 30 and first.kv_plan.prompt_tokens == 0
    longer = request_context(np.arange(50, 90, dtype=np.uint32), (), MODEL)
    second = continued_plan(longer, choice(Route.SPEC_KV, policy, False), stored)
    assert second.read_ids.size == 40 and second.kv_plan == replace(stored.kv_plan, keep_full_prefix=False)
    assert np.flatnonzero(second.kept_mask).tolist() == [*kept, *range(30, 40)]
    assert (second.decision.kv_tokens, second.decision.continued, second.decision.draft) == (19, True, MODEL)
    assert second.decision.cache is CacheOutcome.NOT_USED
    # A third turn may name either prompt.
    assert stored_selection(second).kv_plan.prompt_tokens == 30


def test_only_spec_kv_has_later_turns():
    cascade = SpecKvPc(SpecPc(14, window=4), SpecKv(9, window=3))
    for chosen in (choice(Route.SPEC_KV_PC, cascade), choice(Route.SPEC_PC, SpecPc(14, window=4))):
        assert stored_selection(compressed(chosen, prompt(KEPT))) is None
    assert stored_selection(undrafted_plan(CONTEXT, choice(Route.FULL, None, None))) is None
