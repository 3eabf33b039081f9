"""What the callers take for wrong: each kind of wrong answer is planted."""

from __future__ import annotations

from typing import Any

import pytest

from presift_client import Decision, Model

from .traffic import HEAD_TOKENS, NEW_TOKENS, WINDOW, Heard, Oracle, Question, echo, prompt_of

MODEL, IDS = Model("m", "r", 4096), prompt_of(3)
KEPT = [*IDS[:HEAD_TOKENS], *IDS[20:32], *IDS[-WINDOW:]]


def decision(route: str = "spec_pc", reason: str = "requested", **others: Any) -> Decision:
    kept = len(KEPT) if route.startswith("spec_pc") else len(IDS)
    values: dict[str, Any] = {"prompt_tokens": len(IDS), "kept_tokens": kept, "kv_tokens": kept} | others
    return Decision(
        route, reason, "", protected_tokens=4, coverage=None, cache="miss", draft=None, target=MODEL,
        tokenize_ms=0.0, cache_ms=0.0, draft_ms=0.0, **values,
    )  # fmt: skip


@pytest.fixture
def knowing() -> Oracle:
    oracle = Oracle()
    oracle._kept[3, "spec_pc"] = KEPT
    return oracle


def fault(oracle: Oracle, heard: Heard, route: str = "spec_pc") -> str:
    return oracle.fault_of(Question(3, route, 5.0), heard)


@pytest.mark.parametrize("tokens", [0, 1, 7, NEW_TOKENS])
def test_right_answers_and_their_starts(knowing: Oracle, tokens: int) -> None:
    assert fault(knowing, Heard(decision(), tokens=echo(KEPT, tokens))) == ""
    assert fault(Oracle(), Heard(decision(), tokens=echo(KEPT, tokens))) == ""
    assert fault(knowing, Heard(decision("full", "draft_timeout"), tokens=echo(IDS, tokens))) == ""
    assert fault(knowing, Heard(decision("full"), tokens=echo(IDS, tokens)), "auto") == ""
    assert fault(knowing, Heard()) == ""


@pytest.mark.parametrize("place", [0, 5, len(KEPT), NEW_TOKENS - 1])
def test_one_wrong_token_is_seen(knowing: Oracle, place: int) -> None:
    tokens = echo(KEPT, NEW_TOKENS)
    tokens[place] = tokens[place] % 511 + 1
    assert "other tokens" in fault(knowing, Heard(decision(), tokens=tokens))


def test_other_wrongs_are_seen(knowing: Oracle) -> None:
    assert "for spec_pc" in fault(knowing, Heard(decision("full", "requested")))
    assert "tokens before" in fault(knowing, Heard(tokens=[1]))
    assert "decision about" in fault(knowing, Heard(decision(prompt_tokens=7)))
    assert "kept instead of" in fault(knowing, Heard(decision(kept_tokens=7), tokens=[1]))
    other = prompt_of(4)
    assert "other tokens" in fault(knowing, Heard(decision("full", "draft_timeout"), tokens=echo(other, 5)))


def test_an_unknown_mask_is_held_against_the_rules() -> None:
    backwards = [*KEPT[:HEAD_TOKENS], *reversed(KEPT[HEAD_TOKENS:])]
    assert "in its order" in fault(Oracle(), Heard(decision(), tokens=echo(backwards, NEW_TOKENS)))
    headless = IDS[1 : 1 + len(KEPT)]
    assert "head is not there" in fault(Oracle(), Heard(decision(), tokens=echo(headless, NEW_TOKENS)))
    windowless = IDS[: len(KEPT)]
    assert "window is not there" in fault(Oracle(), Heard(decision(), tokens=echo(windowless, NEW_TOKENS)))
