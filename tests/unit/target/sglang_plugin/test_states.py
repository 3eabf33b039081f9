"""Entries of different content have different names; what was applied is reported."""

from __future__ import annotations

from array import array
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import KvSelection, Pool, Reduction, SpecKv, SpecPc
from presift.core.spans import Span
from presift.target.sglang_plugin.states import PassthroughState, Report, ScoringState, entry_name, state_of

from .fakes import KEPT, PROMPT_TOKENS, compressed

POLICY = SpecKv(capacity=8, window=3)
PLAN = KvPlan(POLICY, (Span(1, 3),), (50, 51))
PROMPT = array("q", range(20))
FLAGS = np.arange(2 * 20).reshape(2, 1, 20) % 3 == 0


ENGINE = ("model", "revision", "weights", "0.5.21", "0.1.0")


def name(
    plan: KvPlan = PLAN,
    prompt: array[int] = PROMPT,
    kept: int = 8,
    salts: Any = ("a", None),
    engine: tuple[str | None, ...] = ENGINE,
) -> str:
    return entry_name(plan, prompt, kept, salts, engine)


def policy(**values: Any) -> KvPlan:
    return replace(PLAN, policy=replace(POLICY, **values))


def masked(flags: np.ndarray[Any, Any]) -> KvPlan:
    return KvPlan(replace(POLICY, selection=KvSelection.DRAFT_MASK), kv_mask=KvMask(flags))


DIFFERENT = {
    "itself": name(),
    "kept": name(kept=7),
    "window": name(policy(window=4)),
    "pool": name(policy(pool=Pool.MEAN)),
    "kernel": name(policy(kernel=5)),
    "reduction": name(policy(reduction=Reduction.SUM)),
    "protected": name(replace(PLAN, protected=(Span(1, 4),))),
    "lookahead": name(replace(PLAN, lookahead_token_ids=(50, 52))),
    "a shorter lookahead": name(replace(PLAN, lookahead_token_ids=(50,))),
    "no lookahead": name(replace(PLAN, lookahead_token_ids=())),
    "prompt": name(prompt=array("q", [*range(19), 20])),
    "a token from prompt to lookahead": name(replace(PLAN, lookahead_token_ids=(19, 50, 51)), array("q", range(19))),
    "salt": name(salts=("b", None)),
    "no salt": name(salts=(None, None)),
    "the other salt": name(salts=(None, "a")),
    "both salts": name(salts=("a", "a")),
    **{f"engine {at}": name(engine=(*ENGINE[:at], "other", *ENGINE[at + 1 :])) for at in range(len(ENGINE))},
    "no revision": name(engine=(ENGINE[0], None, *ENGINE[2:])),
    "a mask": name(masked(FLAGS)),
    "another mask": name(masked(~FLAGS)),
    "a mask of another shape": name(masked(FLAGS.reshape(1, 2, 20))),
}


def test_what_changes_the_kv_changes_the_name() -> None:
    assert len(set(DIFFERENT.values())) == len(DIFFERENT)
    assert all(each.startswith("presift:") and len(each) == 72 for each in DIFFERENT.values())


@pytest.mark.parametrize(
    "same",
    [
        policy(capacity=9),
        policy(lookahead_tokens=5),
        policy(mask=SpecPc(64, window=8)),
        replace(PLAN, protected=(Span(2, 3), Span(1, 2), Span(1, 2))),
        replace(PLAN, keep_full_prefix=False),
        replace(PLAN, report_kept=True),
        replace(PLAN, prompt_tokens=20),
    ],
    ids=str,
)
def test_what_does_not_change_the_kv_finds_the_same_entry(same: KvPlan) -> None:
    assert name(same) == name()


def test_a_name_is_a_digest_that_all_processes_agree_on() -> None:
    """With tensor parallelism each rank names the entry by itself."""
    assert name() == "presift:48ebf7ba4ec7de1cc2ef3a539a5aabc7c6e9916693413a371ac2f1a3cc87c554"
    assert name(prompt=array("i", range(20))) == name()


def test_positions_are_shifted_by_what_was_dropped() -> None:
    state = compressed()
    assert state.shift == PROMPT_TOKENS - 1 - KEPT
    assert state.pseudo_key == array("q", range(KEPT))


def test_what_was_applied_is_reported() -> None:
    state = compressed(suffix_tokens=4)
    state.record_reuse(8, 0.5)
    assert state.report == Report(24, 13, 8, reused_entry=True, coverage=0.5)
    state.record_build(6, score_ms=1.0, publish_ms=2.0, coverage=0.25, kv_mask=None)
    assert state.report == Report(24, 13, 6, False, 1.0, 2.0, 0.25, None, coverage_min=0.25)


def test_what_happened_before_an_entry_was_built_again_stays_reported() -> None:
    state = compressed()
    state.record_build(6, score_ms=1.0, publish_ms=2.0, coverage=0.5)
    state.report.count_step(9)
    state.report.accepted_tokens = state.report.renewals_skipped = 3
    state.record_renewal(coverage=0.25, score_ms=1.0, publish_ms=1.0)
    state.record_build(7, score_ms=1.0, publish_ms=1.0, coverage=0.5)

    values = state.report.values()
    assert (values["renewals"], values["renewals_skipped"], values["accepted_tokens"]) == (1, 3, 3)
    assert (values["score_ms"], values["publish_ms"], values["cached_tokens"]) == (3.0, 4.0, 7)
    assert (values["coverage"], values["coverage_min"], values["kv_tokens_peak"]) == (0.5, 0.25, 9)


def test_the_lowest_coverage_is_remembered() -> None:
    report = Report(20, 9, 0)
    assert report.coverage_min is None
    for coverage, lowest in ((None, None), (0.5, 0.5), (0.75, 0.5), (0.25, 0.25), (None, 0.25)):
        report.add_coverage(coverage)
        assert (report.coverage, report.coverage_min) == (coverage, lowest)


def test_the_kv_that_decode_steps_hold_is_counted() -> None:
    report = Report(20, 9, 0)
    assert (report.values()["kv_tokens_peak"], report.values()["kv_tokens_mean"]) == (9, 9.0)
    for kv_tokens in (30, 10, 20):
        report.count_step(kv_tokens)
    assert (report.values()["kv_tokens_peak"], report.values()["kv_tokens_mean"]) == (30, pytest.approx(20))
    assert not any(name.startswith("_") for name in report.values())


@pytest.mark.parametrize("state", [compressed(), ScoringState(compressed(), None), PassthroughState(Report(1, 1, 0))])
def test_the_state_is_found_on_the_request(state: Any) -> None:
    parameters = {"presift": state, "theirs": 1}
    assert state_of(SimpleNamespace(sampling_params=SimpleNamespace(custom_params=parameters))) is state


@pytest.mark.parametrize("parameters", [None, {}, {"presift": "{}"}, {"presift": None}, "presift", {"theirs": 1}])
def test_other_requests_have_none(parameters: Any) -> None:
    assert state_of(SimpleNamespace(sampling_params=SimpleNamespace(custom_params=parameters))) is None
