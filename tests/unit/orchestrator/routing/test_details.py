"""The detail of a decision: one short sentence with the numbers that decided."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest, PresiftError
from presift.core.kv_plan import KvPlan
from presift.core.policies import KvSelection, SpecKv
from presift.orchestrator.domain.request import AutoCapacity
from presift.orchestrator.planning.draft_stage import as_detail
from presift.orchestrator.routing.auto import less_lossy
from presift.orchestrator.routing.choice import with_clause
from presift.orchestrator.routing.kv_routes import continue_kv
from presift.orchestrator.routing.quality_gate import QualityGate, RouteBreaker, Thresholds, length_band
from presift.orchestrator.routing.router import choose

from ....builders import COSTS, DEFAULTS, FULL, KV, KV_PC, PC, routing_inputs

MOST_CHARACTERS = 120
OFF = "is switched off for 512-1023 tokens: agreement below 0.45"
KINDS = (("tools and template", 70), ("system messages", 40), ("the question", 9))
SLOW_DRAFT = replace(COSTS, draft=replace(COSTS.draft, call_ms=1e6))
# A prompt of 1,000 tokens; the draft takes 1 ms a token, the target 10. AUTO unless a route is named.
SITUATIONS = [
    ({"wanted": FULL}, "reads the whole prompt"),
    ({"wanted": FULL, "max_prompt_tokens": 300}, "reads the whole prompt; over the budget of 300 tokens"),
    ({"prompt_tokens": 400}, "400 prompt tokens, compressed above 400"),
    ({"wanted": PC}, "keeps 100 prompt tokens"),
    ({"wanted": PC, "max_prompt_tokens": 1000}, "1000 prompt tokens fit 1000"),
    ({"wanted": PC, "max_ttft_ms": 500}, "keeps 100 prompt tokens; predicted at 2000 ms, over max_ttft_ms 500"),
    ({"wanted": PC, "auto_capacity": AutoCapacity(0.9)}, "keeps up to 100 prompt tokens"),
    ({"wanted": PC, "must_keep": 100}, "keeps 100 prompt tokens; nothing but the 100 tokens that must be kept"),
    (
        {"wanted": PC, "must_keep": 119, "protected_kinds": KINDS},
        "protected spans and window need 119 of 100 tokens (tools and template 70, system messages 40)",
    ),
    ({"wanted": KV}, "keeps 51 KV tokens"),
    ({"wanted": KV, "max_kv_tokens": 1000}, "1000 prompt tokens fit 1000 KV tokens"),
    ({"wanted": KV, "kv_pool_tokens": 900}, "selecting KV takes 1058 slots, the target's pool has 900"),
    (
        {"wanted": KV, "max_prompt_tokens": 300},
        "keeps 300 prompt and 51 KV tokens; all 1000 prompt tokens are over max_prompt_tokens 300",
    ),
    (
        {"wanted": KV, "max_prompt_tokens": 300, "selection": KvSelection.DRAFT_MASK},
        "keeps 51 KV tokens; all 1000 prompt tokens are over max_prompt_tokens 300",
    ),
    ({"wanted": KV_PC}, "keeps 200 prompt and 51 KV tokens"),
    ({"wanted": KV_PC, "max_prompt_tokens": 1100}, "keeps 51 KV tokens; all 1000 prompt tokens fit 1100"),
    (
        {"wanted": KV_PC, "max_prompt_tokens": 60, "max_kv_tokens": 80},
        "keeps 60 prompt tokens; their KV fits 80 tokens",
    ),
    ({"wanted": PC, "off": {PC: OFF}}, f"spec_pc {OFF}"),
    (
        {"wanted": PC, "off": {PC: OFF}, "prompt_tokens": 3000},
        "keeps 100 prompt tokens; although spec_pc is switched off: full does not fit the context of 2000",
    ),
    (
        {"off": {PC: OFF}, "prompt_tokens": 3000, "max_ttft_ms": 1, "supported": frozenset({FULL, PC})},
        "spec_pc is the nearest; although spec_pc is switched off: full does not fit the context of 2000",
    ),
    (
        {"wanted": PC, "off": {PC: OFF}, "max_prompt_tokens": 100, "strict": True},
        "keeps 100 prompt tokens; although spec_pc is switched off: full exceeds the strict budget",
    ),
    ({}, "spec_pc keeps 100 prompt tokens; full needs 1000 prompt tokens of 100 (the default capacity)"),
    (
        {"max_prompt_tokens": 300},
        "spec_pc keeps 300 prompt tokens; full needs 1000 prompt tokens of 300 (max_prompt_tokens)",
    ),
    (
        {"max_kv_tokens": 500},
        "spec_kv keeps 500 KV tokens; full needs 1000 KV tokens of 500 (max_kv_tokens)",
    ),
    (
        {"max_kv_tokens": 80, "max_prompt_tokens": 300},
        "spec_kv_pc keeps 300 prompt and 80 KV tokens; full needs 1000 KV tokens of 80 (max_kv_tokens)",
    ),
    (
        {"auto_capacity": AutoCapacity(0.9, max_tokens=300)},
        "spec_pc keeps up to 300 prompt tokens; full needs 1000 prompt tokens of 300 (auto_capacity.max_tokens)",
    ),
    (
        {"max_ttft_ms": 2222},
        "spec_pc keeps 100 prompt tokens; full needs 10000 ms of 2000 (nine tenths of max_ttft_ms 2222)",
    ),
    (
        {"prompt_tokens": 3000},
        "spec_pc keeps 100 prompt tokens; full needs 3000 tokens of 1950 (the context less the answer)",
    ),
    ({"off": {KV: OFF}}, "spec_pc keeps 100 prompt tokens; spec_kv is switched off for 512-1023 tokens"),
    ({"off": {PC: OFF, KV: OFF, KV_PC: OFF}}, f"spec_pc {OFF}; so are spec_kv, spec_kv_pc"),
    (
        {"beyond": dict.fromkeys((PC, KV, KV_PC), InvalidRequest("sampling.prompt_logprobs", True, "unset"))},
        "spec_pc does not support sampling.prompt_logprobs",
    ),
    (
        {"max_ttft_ms": 500},
        "spec_pc is the nearest; it needs 2000 ms of 450 (nine tenths of max_ttft_ms 500)",
    ),
    (
        {"max_kv_tokens": 80, "supported": frozenset({FULL})},
        "no compressing route is served here; over the budget of 80 tokens",
    ),
    (
        {"supported": frozenset({FULL, KV}), "max_prompt_tokens": 500},
        "full is the nearest; it needs 1000 prompt tokens of 500 (max_prompt_tokens)",
    ),
    ({"max_kv_tokens": 1000}, "1000 prompt tokens fit 1000 (max_kv_tokens)"),
    ({"max_ttft_ms": 99_999}, "predicted at 10000 ms, within max_ttft_ms 99999"),
    (
        {"max_kv_tokens": 1100, "max_prompt_tokens": 1000, "max_ttft_ms": 99_999},
        "1000 prompt tokens fit 1000 (max_prompt_tokens); predicted at 10000 ms, within max_ttft_ms 99999",
    ),
    ({"costs": SLOW_DRAFT}, "full is predicted at 10000 ms; the fastest other route at 1002000 ms"),
    (
        {"cached_tokens": 960},
        "full is predicted at 400 ms (960 of 1000 tokens cached); the fastest other route at 1450 ms",
    ),
    ({"supported": frozenset({FULL})}, "no compressing route is served here"),
    ({"auto_capacity": AutoCapacity(0.9, max_tokens=5)}, "spec_pc needs budget >= 10 tokens"),
    ({"draft_context_tokens": 900}, "the draft reads at most 900 tokens, not 1000 prompt tokens"),
]


@pytest.mark.parametrize(("situation", "text"), SITUATIONS, ids=[text for _, text in SITUATIONS])
def test_the_detail_of_a_situation(situation, text):
    assert choose(routing_inputs(**situation)).detail == text
    check(text)


@pytest.mark.parametrize(
    ("coverage", "changes", "text"),
    [
        (0.5, {}, "spec_pc covers 0.500, min_coverage is 0.9; spec_kv_pc keeps 200 prompt and 51 KV tokens"),
        (
            None,
            {},
            "spec_pc has an unknown coverage, min_coverage is 0.9; spec_kv_pc keeps 200 prompt and 51 KV tokens",
        ),
        (0.5, {"supported": frozenset({FULL, PC})}, "spec_pc covers 0.500, min_coverage is 0.9"),
        (
            0.5,
            {"max_prompt_tokens": 300},
            "spec_pc covers 0.500, min_coverage is 0.9; over the budget of 300 tokens",
        ),
    ],
)
def test_the_detail_after_too_little_coverage(coverage, changes, text):
    inputs = routing_inputs(min_coverage=0.9, **changes)
    assert less_lossy(choose(replace(inputs, wanted=PC)), coverage, inputs).detail == text
    check(text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "continues the selection of 600 tokens"),
        ({"max_kv_tokens": 100}, "continues the selection of 600 tokens; over max_kv_tokens (451 of 100)"),
        (
            {"max_prompt_tokens": 100, "max_kv_tokens": 100},
            "continues the selection of 600 tokens; over max_kv_tokens (451 of 100)",
        ),
    ],
)
def test_the_detail_of_a_later_turn(changes, text):
    plan = KvPlan(SpecKv(50, window=8), (), prompt_tokens=600)
    assert continue_kv(plan, routing_inputs(**changes)).detail == text
    check(text)


def test_the_text_of_a_route_that_the_quality_gate_switched_off():
    gate = QualityGate(Thresholds(off_below=0.45))
    band = length_band(1000)
    gate._shared[PC, band] = RouteBreaker(PC, band, is_off=True)
    assert gate.off(1000) == {PC: OFF}


def test_a_later_clause_replaces_the_second():
    assert with_clause("keeps 5; a", "b") == "keeps 5; b"
    assert with_clause("keeps 5; a", "") == "keeps 5; a"
    assert with_clause("", "b") == "b"


def test_an_error_of_a_peer_is_cut():
    check(as_detail("UNAVAILABLE: failed to connect to 10.0.0.7:50052; last error: refused; errors: " + "x" * 999))
    assert as_detail("bad\nline\x1b[2K\x85") == "bad line [2K"
    assert as_detail("the draft failed repeatedly; try again") == "the draft failed repeatedly; try again"


def check(detail):
    """One short sentence of at most two clauses; its numbers, unless nothing but a rule decided."""
    assert 0 < len(detail) <= MOST_CHARACTERS and detail.count(";") <= 1 and "\n" not in detail
    rules = ("reads the whole prompt", "is served here", "does not support")
    assert re.search(r"\d", detail) or any(rule in detail for rule in rules)


TOKENS = st.integers(1, 99_999)
BAND_OFF = "is switched off for 65536-131071 tokens: agreement below 0.45"
LIMITS = {
    "max_prompt_tokens": st.none() | TOKENS,
    "max_kv_tokens": st.none() | TOKENS,
    "max_ttft_ms": st.none() | st.integers(1, 60_000),
    "auto_capacity": st.none() | st.builds(AutoCapacity, st.floats(0.1, 1), st.none(), st.none() | TOKENS),
}
OTHERS = {
    "wanted": st.sampled_from([None, FULL, PC, KV, KV_PC]),
    "context_tokens": st.integers(60, 99_999),
    "supported": st.sampled_from([(), (PC,), (KV,), (PC, KV), (PC, KV, KV_PC)]).map(lambda more: {FULL, *more}),
    "off": st.sets(st.sampled_from([PC, KV, KV_PC])).map(lambda routes: dict.fromkeys(routes, BAND_OFF)),
    "draft_context_tokens": st.just(0) | TOKENS,
    "kv_pool_tokens": st.just(0) | TOKENS,
    "defaults": st.sampled_from([DEFAULTS, replace(DEFAULTS, cascade_capacity=50_000)]),
}


@given(
    tokens=st.integers(2, 99_999),
    must_keep=TOKENS,
    covers=st.none() | st.floats(0, 1),
    changes=st.fixed_dictionaries({**LIMITS, **OTHERS}),
)
def test_every_detail_is_one_short_sentence(tokens, must_keep, covers, changes):
    inputs = routing_inputs(
        prompt_tokens=tokens,
        must_keep=max(min(tokens, 10), min(must_keep, tokens)),
        must_keep_kv=max(min(tokens - 1, 8), min(must_keep, tokens - 1)),
        protected_kinds=(("not marked as documents", must_keep), ("tools and template", 1000), ("the question", 9)),
        min_coverage=0.9,
        **changes,
    )
    try:
        choice = choose(inputs)
        check(choice.detail)
        while choice.policy is not None:
            choice = less_lossy(choice, covers, inputs)
            check(choice.detail)
    except PresiftError:
        return
