import base64

import numpy as np
import pytest
from retrieval_drafts import CAPACITIES, first_capacity
from spec_kv_methods import FAMILIES, family, full
from spec_kv_table import table

from presift.core.kv_plan import check_plan
from presift.core.masks import TokenMask
from presift.core.spans import Span
from presift.orchestrator.domain.request import TokenizedPrompt

TOKENS = 2200
PROMPT = TokenizedPrompt(np.arange(TOKENS, dtype=np.uint32), (Span(0, 20), Span(TOKENS - 50, TOKENS)))


def mask(kept: int) -> dict[str, str]:
    """The first 20 tokens and the last ones, `kept` in all."""
    flags = np.arange(TOKENS) < 20
    flags[TOKENS - kept + 20 :] = True
    return {"kept": base64.b64encode(TokenMask(flags).to_bits()).decode()}


RECORD = {
    "prompt_tokens": TOKENS,
    "lookahead": [1, 2, 3],
    "masks": {
        **{f"spec_pc {size}": mask(size) for size in (*CAPACITIES, first_capacity(TOKENS))},
        **{f"draft_mask {size}": mask(size + 1) for size in CAPACITIES},
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_method_keeps_its_capacity(name):
    for capacity, (label, request) in zip(CAPACITIES, family(name, PROMPT, RECORD).items(), strict=True):
        assert label == f"{name} {capacity}"
        if name == "spec_pc":
            assert request.kv_plan is None
            assert request.token_ids.size == capacity
        else:
            assert request.kv_plan is not None
            assert check_plan(request.kv_plan, request.token_ids.size, layers=2, kv_heads=2) == capacity


def test_what_each_method_reads_and_by_what_it_chooses():
    requests = {name: family(name, PROMPT, RECORD)[f"{name} 256"] for name in FAMILIES}
    sizes = {name: request.token_ids.size for name, request in requests.items()}
    assert sizes == dict.fromkeys(FAMILIES, TOKENS) | {"spec_pc": 256, "spec_kv_pc": 1024}
    plans = {name: request.kv_plan for name, request in requests.items()}
    assert plans["spec_kv"] and plans["spec_kv"].lookahead_token_ids == (1, 2, 3)
    assert plans["no_lookahead"] and plans["no_lookahead"].lookahead_token_ids == ()
    assert plans["spec_kv_pc"] and plans["spec_kv_pc"].protected == (Span(0, 20), Span(974, 1024))
    assert full(PROMPT).kv_plan is None


def test_newest_keeps_the_last_tokens_before_the_final_one_and_nothing_else():
    plan = family("newest", PROMPT, RECORD)["newest 256"].kv_plan
    assert plan and plan.kv_mask and plan.protected == ()
    assert np.flatnonzero(plan.kv_mask.kept[0, 0]).tolist() == list(range(TOKENS - 257, TOKENS))


def test_the_table_counts_right_answers_and_what_is_worse_than_full():
    def row(draft: bool, *right: bool) -> dict[str, object]:
        answers = {name: {"right": one} for name, one in zip(("full", "spec_kv 256"), right, strict=True)}
        return {"kind": "code", "prompt_tokens": 2100, "draft_right": draft, "answers": answers}

    rows = {"a": row(True, True, True), "b": row(False, True, False), "c": row(False, False, True)}
    lines = table(rows).splitlines()
    assert "| draft alone | 1/3 (33%)" in lines[2]
    assert lines[4].startswith("| spec_kv 256 | 2/3 (67%) | - | - | 2/3 (67%) | 1/2 (50%) | 1/2 (50%)")
    assert "| 1 / 1 |" in lines[4]
