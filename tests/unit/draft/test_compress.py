"""Every policy over a tiny model: one prefill, the lookahead of the full prompt, what is kept."""

from dataclasses import replace

import numpy as np
import pytest

from presift.core.importance import coverage
from presift.core.masks import KvMask
from presift.core.policies import Adaptive, KvSelection, Pool, SpecKv, SpecKvPc, SpecPc
from presift.core.selection import select
from presift.core.spans import Span
from presift.draft.compress import compress
from presift.draft.demand import demand_of
from presift.draft.request import Request
from presift.draft.scorer import Cancel

N = 200
SPEC_PC = SpecPc(capacity=64, window=8, start_layer=1, lookahead_tokens=4)
SPEC_KV = SpecKv(capacity=40, window=8, lookahead_tokens=6, mask=SPEC_PC)
POLICIES = {
    "spec_pc": SPEC_PC,
    "spec_kv": SPEC_KV,
    "spec_kv by mask": replace(SPEC_KV, selection=KvSelection.DRAFT_MASK),
    "spec_kv_pc": SpecKvPc(SPEC_PC, SPEC_KV),
    "spec_kv_pc, few": SpecKvPc(SPEC_PC, replace(SPEC_KV, lookahead_tokens=2)),
}
# policy -> generated tokens that are fed back: those that are scored, and all that are returned but the last.
FED = {"spec_pc": 3, "spec_kv": 5, "spec_kv by mask": 3, "spec_kv_pc": 5, "spec_kv_pc, few": 3}
RETURNED = {"spec_pc": 0, "spec_kv": 6, "spec_kv by mask": 0, "spec_kv_pc": 6, "spec_kv_pc, few": 2}
EVERY = pytest.mark.parametrize("name", POLICIES)


def _request(ids, policy, protected=(), lookahead_tokens=0, include_importance=False):
    return Request(ids, demand_of(policy), protected, lookahead_tokens, include_importance)


@pytest.fixture
def run(tiny_scorer, prompt):
    """(policy, options of the request) -> CompressionResult."""

    def run(policy, n=N, **options):
        return compress(tiny_scorer("tinyq", 64), _request(prompt(n), policy, **options), Cancel())

    return run


@pytest.fixture
def forwarded(tiny_scorer):
    """How many tokens each forward call of the model has read."""
    tokens = []
    hook = tiny_scorer("tinyq", 64)._body.register_forward_pre_hook(
        lambda _, __, options: tokens.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    yield tokens
    hook.remove()


@EVERY
@pytest.mark.parametrize("include_importance", [False, True])
def test_the_prompt_is_read_once(name, include_importance, run, forwarded):
    run(POLICIES[name], include_importance=include_importance)
    assert sum(forwarded) == N + FED[name]
    assert forwarded == [50] * 4 + [1] * FED[name]


@EVERY
def test_the_lookahead_is_that_of_the_full_prompt(name, run):
    compressed = run(POLICIES[name])
    plain = run(SpecKv(capacity=40, window=8, lookahead_tokens=6)).scored.lookahead_token_ids
    assert len(plain) == 6
    assert compressed.scored.lookahead_token_ids == plain[: RETURNED[name]]


@EVERY
@pytest.mark.parametrize("asked", [1, 5, 9])
def test_the_larger_lookahead_counts(name, asked, run):
    compressed = run(POLICIES[name], lookahead_tokens=asked)
    assert len(compressed.scored.lookahead_token_ids) == max(asked, RETURNED[name])


@EVERY
def test_a_lookahead_ends_with_the_end_token(name, run, tiny_scorer, monkeypatch):
    tokens = run(SPEC_KV).scored.lookahead_token_ids
    monkeypatch.setattr(tiny_scorer("tinyq", 64), "_end_ids", frozenset({tokens[1]}))
    assert run(POLICIES[name]).scored.lookahead_token_ids == tokens[: min(tokens.index(tokens[1]) + 1, RETURNED[name])]


def test_where_the_target_chooses_nothing_is_scored_and_everything_kept(run, monkeypatch):
    monkeypatch.setattr("presift.draft.attention.RowCapture.observe", None)  # would be called if rows were captured
    compressed = run(SPEC_KV)
    assert compressed.scored.importance is None
    assert compressed.mask.kept_tokens == N
    assert compressed.kv_mask is None
    assert compressed.coverage is None


def test_where_the_target_chooses_importance_is_captured_only_to_be_seen(run):
    seen, drawn = run(SPEC_KV, include_importance=True), run(POLICIES["spec_kv by mask"])
    np.testing.assert_array_equal(seen.scored.importance, drawn.scored.importance)
    assert seen.mask.kept_tokens == N
    assert (seen.kv_mask, seen.coverage) == (None, None)


@pytest.mark.parametrize("pool", list(Pool))
def test_the_drafts_mask_keeps_capacity_and_the_final_token(pool, run):
    mask = replace(SPEC_PC, pool=pool)
    compressed = run(replace(SPEC_KV, selection=KvSelection.DRAFT_MASK, mask=mask))
    plain = run(replace(mask, capacity=41, window=9))
    assert compressed.mask == plain.mask
    assert compressed.mask.kept_tokens == 41
    assert compressed.mask.kept[N - 9 :].all()
    assert compressed.kv_mask == KvMask.uniform(plain.mask)
    assert compressed.coverage == plain.coverage


def test_the_first_stage_of_a_cascade_is_spec_pc(run):
    both, alone = run(POLICIES["spec_kv_pc"]), run(SPEC_PC)
    assert both.mask == alone.mask
    assert both.mask.kept_tokens == 64
    assert both.kv_mask is None
    assert both.coverage == alone.coverage


@pytest.mark.parametrize(
    ("name", "fits"), [("spec_pc", 64), ("spec_kv by mask", 41), ("spec_kv_pc", 64), ("spec_kv", N)]
)
def test_a_prompt_that_fits_is_kept_whole_with_its_lookahead(name, fits, run):
    whole = run(POLICIES[name], n=fits, include_importance=name != "spec_kv")
    assert whole.mask.kept_tokens == fits
    assert (whole.scored.importance, whole.coverage) == (None, None)
    assert len(whole.scored.lookahead_token_ids) == RETURNED[name]
    assert (whole.kv_mask is not None) == (name == "spec_kv by mask")
    if whole.kv_mask is not None:
        assert whole.kv_mask.kept.all()
    if name != "spec_kv":
        assert run(POLICIES[name], n=fits + 1).mask.kept_tokens == fits


@EVERY
def test_protected_spans_are_kept_by_every_mask(name, run):
    spans = (Span(3, 20), Span(90, 100), Span(N - 1, N))
    compressed = run(POLICIES[name], protected=spans)
    assert all(compressed.mask.kept[span.start : span.end].all() for span in spans)
    unprotected = run(POLICIES[name])
    assert name == "spec_kv" or unprotected.mask != compressed.mask


AUTO = {"adaptive": Adaptive(0.15, 24, 4)}
OF_FEWER = {"adaptive": Adaptive(0.45, 24, 4)}
AUTO_POLICIES = {
    "spec_pc": replace(SPEC_PC, **AUTO),
    "spec_kv": replace(SPEC_KV, **AUTO),
    "spec_kv by mask": replace(SPEC_KV, selection=KvSelection.DRAFT_MASK, **AUTO),
    "spec_kv_pc, kv": SpecKvPc(SPEC_PC, replace(SPEC_KV, **OF_FEWER)),
    "spec_kv_pc, both": SpecKvPc(replace(SPEC_PC, **AUTO), replace(SPEC_KV, adaptive=Adaptive(0.45, 12, 4))),
}


def reach(mass, mask, wanted):
    return coverage(mass, mask.kept) >= wanted


@pytest.mark.parametrize("wanted", [0.01, 0.15, 0.2, 0.25, 1.0])
def test_the_mask_is_the_smallest_that_covers_enough(wanted, run):
    compressed = run(replace(SPEC_PC, adaptive=Adaptive(wanted, 24, 4)))
    fixed = {size: run(replace(SPEC_PC, capacity=size)) for size in range(24, 65, 4)}
    size = next((size for size, each in fixed.items() if each.coverage >= np.float32(wanted)), 64)
    assert compressed.mask == fixed[size].mask
    assert (compressed.coverage, compressed.kv_capacity) == (fixed[size].coverage, None)


def test_the_drafts_kv_mask_adapts_with_the_final_token_on_top(run):
    compressed = run(AUTO_POLICIES["spec_kv by mask"])
    plain = run(replace(SPEC_PC, capacity=41, window=9, adaptive=Adaptive(0.15, 25, 4)))
    assert compressed.mask == plain.mask and compressed.kv_mask == KvMask.uniform(plain.mask)
    assert compressed.mask.kept_tokens == 37 and compressed.kv_capacity is None


def test_where_the_target_chooses_the_drafts_mask_is_only_counted(run):
    compressed, by_mask = run(AUTO_POLICIES["spec_kv"]), run(AUTO_POLICIES["spec_kv by mask"])
    assert compressed.kv_capacity == by_mask.mask.kept_tokens - 1 == 36
    assert compressed.mask.kept_tokens == N and (compressed.kv_mask, compressed.coverage) == (None, None)
    assert compressed.scored.lookahead_token_ids == run(SPEC_KV).scored.lookahead_token_ids


def test_a_cascade_counts_among_what_its_first_stage_kept(run):
    compressed, alone = run(AUTO_POLICIES["spec_kv_pc, kv"]), run(SPEC_PC)
    assert compressed.mask == alone.mask
    mass = compressed.scored.coverage_importance[alone.mask.kept]
    importance = compressed.scored.importance[alone.mask.kept]
    sizes = {size: select(importance, replace(SPEC_PC, capacity=size + 1, window=9)) for size in range(24, 41, 4)}
    assert compressed.kv_capacity == next(s for s, mask in sizes.items() if reach(mass, mask, 0.45)) == 32


@pytest.mark.parametrize(("first", "second"), [(0.01, None), (1.0, 40)])
def test_a_cascade_whose_first_stage_keeps_little_has_nothing_more_to_count(first, second, run):
    prompt = replace(SPEC_PC, adaptive=Adaptive(first, 24))
    compressed = run(SpecKvPc(prompt, replace(SPEC_KV, adaptive=Adaptive(1.0, 12))))
    assert compressed.kv_capacity == second


@pytest.mark.parametrize("name", AUTO_POLICIES)
def test_one_pass_serves_what_adapts_too(name, run, forwarded):
    compressed = run(AUTO_POLICIES[name])
    assert sum(forwarded) == N + FED[name.split(",")[0]]
    assert compressed.scored.importance is not None


@pytest.mark.parametrize("name", AUTO_POLICIES)
def test_protected_spans_are_kept_and_counted(name, run):
    spans = (Span(3, 20), Span(90, 100), Span(N - 1, N))
    compressed = run(AUTO_POLICIES[name], protected=spans)
    assert all(compressed.mask.kept[span.start : span.end].all() for span in spans)
    if compressed.kv_capacity is not None:
        assert compressed.kv_capacity >= 27 + 8


@pytest.mark.parametrize(("name", "fits"), [("spec_pc", 64), ("spec_kv", 41), ("spec_kv by mask", 41)])
def test_a_prompt_that_fits_the_most_is_kept_whole_unscored(name, fits, run):
    whole = run(AUTO_POLICIES[name], n=fits)
    assert (whole.mask.kept_tokens, whole.scored.importance, whole.kv_capacity) == (fits, None, None)
