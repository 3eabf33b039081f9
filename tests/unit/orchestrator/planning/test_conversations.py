"""Stored selections: found by the exact prompt, bounded, and separate for each tenant."""

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


def selection(prompt_tokens):
    return StoredSelection(KvPlan(SpecKv(50), prompt_tokens=prompt_tokens), MODEL, None)


def test_only_the_same_prompt_is_recalled():
    store = SelectionStore(4)
    store.remember(ids(1, 2, 3), selection(3), "")
    assert store.recall(ids(1, 2, 3), "") == selection(3)
    for other in (ids(1, 2), ids(1, 2, 3, 4), ids(3, 2, 1), ids(1, 2, 4)):
        assert store.recall(other, "") is None


def test_the_least_recently_used_selection_is_forgotten():
    store = SelectionStore(2)
    store.remember(ids(1), selection(1), "")
    store.remember(ids(2), selection(2), "")
    assert store.recall(ids(1), "") is not None
    store.remember(ids(3), selection(3), "")
    assert [store.recall(ids(n), "") is not None for n in (1, 2, 3)] == [True, False, True]
    store.remember(ids(1), selection(9), "")
    store.remember(ids(4), selection(4), "")
    assert store.recall(ids(1), "") == selection(9) and store.recall(ids(3), "") is None


def test_a_store_without_entries_remembers_nothing():
    store = SelectionStore(0)
    store.remember(ids(1), selection(1), "")
    assert store.recall(ids(1), "") is None and len(store) == 0


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 4))
def test_the_store_is_bounded(prompts, entries):
    store = SelectionStore(entries)
    for prompt in prompts:
        store.remember(ids(prompt), selection(1), "")
        assert len(store) <= entries


def test_tenants_do_not_share():
    # A salt of four bytes looks like a token, but must not match one.
    store, token = SelectionStore(4), int.from_bytes(b"abcd", "little")
    store.remember(ids(1), selection(1), "abcd")
    assert store.recall(ids(1), "abcd") is not None
    assert all(store.recall(*other) is None for other in ((ids(1), ""), (ids(1), "other"), (ids(token, 1), "")))
