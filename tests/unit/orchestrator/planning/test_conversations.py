"""The memory of turns: exact, bounded, one tenant's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo
from presift.core.policies import SpecKv
from presift.orchestrator.planning.conversations import SelectionStore, StoredSelection

MODEL = ModelInfo("m", "r", "f", 100, 1, 1, 100)


def ids(*values):
    return np.array(values, dtype=np.uint32)


def turn(prompt_tokens):
    return StoredSelection(KvPlan(SpecKv(50), prompt_tokens=prompt_tokens), MODEL, None)


def test_only_the_same_prompt_is_recalled():
    turns = SelectionStore(4)
    turns.remember(ids(1, 2, 3), turn(3), "")
    assert turns.recall(ids(1, 2, 3), "") == turn(3)
    for other in (ids(1, 2), ids(1, 2, 3, 4), ids(3, 2, 1), ids(1, 2, 4)):
        assert turns.recall(other, "") is None


def test_the_oldest_is_forgotten_and_use_keeps_one_young():
    turns = SelectionStore(2)
    turns.remember(ids(1), turn(1), "")
    turns.remember(ids(2), turn(2), "")
    assert turns.recall(ids(1), "") is not None
    turns.remember(ids(3), turn(3), "")
    assert [turns.recall(ids(n), "") is not None for n in (1, 2, 3)] == [True, False, True]
    turns.remember(ids(1), turn(9), "")
    turns.remember(ids(4), turn(4), "")
    assert turns.recall(ids(1), "") == turn(9) and turns.recall(ids(3), "") is None


def test_nothing_is_remembered_where_nothing_may_be():
    turns = SelectionStore(0)
    turns.remember(ids(1), turn(1), "")
    assert turns.recall(ids(1), "") is None and len(turns) == 0


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 4))
def test_it_stays_bounded(prompts, entries):
    turns = SelectionStore(entries)
    for prompt in prompts:
        turns.remember(ids(prompt), turn(1), "")
        assert len(turns) <= entries


def test_tenants_do_not_share():
    # A salt of four bytes looks like a token: it must not pass for one.
    turns, token = SelectionStore(4), int.from_bytes(b"abcd", "little")
    turns.remember(ids(1), turn(1), "abcd")
    assert turns.recall(ids(1), "abcd") is not None
    assert all(turns.recall(*other) is None for other in ((ids(1), ""), (ids(1), "other"), (ids(token, 1), "")))
