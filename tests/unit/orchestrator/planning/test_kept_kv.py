"""Kept KV: from positions of the tokens read to positions of the prompt."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import TargetUnavailable
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import SpecKv
from presift.orchestrator.planning.kept_kv import KeptKv, in_prompt

POLICY = SpecKv(10, window=3)


def plan(kept, read=None):
    """A plan that keeps `kept` of the prompt and reads `read` tokens, all by default."""
    kept = np.asarray(kept, dtype=np.bool_)
    return SimpleNamespace(kept_mask=kept, read_ids=np.arange(kept.size if read is None else read, dtype=np.uint32))


def mask(rows):
    return KvMask(np.asarray(rows, dtype=np.bool_)[None])


def test_a_prompt_that_was_read_in_full():
    found = in_prompt(mask([[1, 0, 1], [0, 0, 1]]), KvPlan(POLICY), plan([1, 1, 1]))
    assert found == mask([[1, 0, 1], [0, 0, 1]])
    # The draft's mask is what `kept` says there, and no word on what was read.
    assert in_prompt(mask([[1, 0, 1]]), KvPlan(POLICY), plan([1, 0, 1], read=3)) == mask([[1, 0, 1]])


def test_a_prompt_that_was_read_in_part():
    found = in_prompt(mask([[1, 0, 1], [0, 1, 1]]), KvPlan(POLICY), plan([0, 1, 1, 0, 1], read=3))
    assert found == mask([[0, 1, 0, 0, 1], [0, 0, 1, 0, 1]])


def test_tokens_after_the_selection_are_kept():
    found = in_prompt(mask([[1, 0]]), KvPlan(POLICY, prompt_tokens=2), plan([1, 1, 1, 1]))
    assert found == mask([[1, 0, 1, 1]])


@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_a_mask_of_another_prompt_is_refused(tokens):
    with pytest.raises(TargetUnavailable, match=f"of {tokens} tokens where it read 3"):
        in_prompt(mask([[1] * tokens]), KvPlan(POLICY), plan([1, 1, 1]))


def test_shares():
    assert KeptKv(mask([[1, 0, 1], [0, 0, 1]]), None).shares.tolist() == [0.5, 0, 1]


@given(st.lists(st.booleans(), min_size=1, max_size=50), st.data())
def test_the_number_of_pairs_stays(kept, data):
    read = sum(kept)
    if read:
        rows = [data.draw(st.lists(st.booleans(), min_size=read, max_size=read)) for _ in range(3)]
        found = in_prompt(mask(rows), KvPlan(POLICY), plan(kept, read=read))
        assert np.array_equal(found.kept.sum(axis=2), mask(rows).kept.sum(axis=2))
        assert (
            np.array_equal(found.kept[:, :, np.array(kept)], mask(rows).kept)
            and not found.kept[:, :, ~np.array(kept)].any()
        )
