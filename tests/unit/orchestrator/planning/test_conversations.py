"""Stored selections: found by the exact prompt, bounded, and separate for each tenant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask, TokenMask
from presift.core.plan import ModelInfo
from presift.core.policies import KvSelection, SpecKv
from presift.core.spans import Span
from presift.orchestrator.planning.conversations import SELECTION_BYTES, SelectionStore, StoredSelection

from ....held_bytes import held_bytes

MODEL = ModelInfo("m", "r", "f", 100, 1, 1, 100)


def ids(*values):
    return np.array(values, dtype=np.uint32)


def selection(prompt_tokens):
    return StoredSelection(KvPlan(SpecKv(50), prompt_tokens=prompt_tokens), MODEL, None)


def with_mask(prompt_tokens):
    mask = KvMask.uniform(TokenMask(np.arange(prompt_tokens) % 3 == 0))
    return StoredSelection(KvPlan(SpecKv(50, selection=KvSelection.DRAFT_MASK), kv_mask=mask), MODEL, 0.5, 0.25)


def with_spans(spans):
    protected = tuple(Span(10 * at, 10 * at + 5) for at in range(spans))
    return StoredSelection(KvPlan(SpecKv(50), protected, (1, 2, 3), keep_full_prefix=False), MODEL, None)


def room_for(entries):
    return SelectionStore(entries * (SELECTION_BYTES + 100))


def test_only_the_same_prompt_is_recalled():
    store = room_for(4)
    store.remember(ids(1, 2, 3), selection(3), "")
    assert store.recall(ids(1, 2, 3), "") == selection(3)
    for other in (ids(1, 2), ids(1, 2, 3, 4), ids(3, 2, 1), ids(1, 2, 4)):
        assert store.recall(other, "") is None


@pytest.mark.parametrize("stored", [selection(3), with_mask(1001), with_spans(20)])
def test_a_selection_is_recalled_as_it_was(stored):
    store = SelectionStore(100_000)
    store.remember(ids(1), stored, "")
    assert store.recall(ids(1), "") == stored


def test_the_least_recently_used_selection_is_forgotten():
    store = room_for(2)
    store.remember(ids(1), selection(1), "")
    store.remember(ids(2), selection(2), "")
    assert store.recall(ids(1), "") is not None
    store.remember(ids(3), selection(3), "")
    assert [store.recall(ids(n), "") is not None for n in (1, 2, 3)] == [True, False, True]
    store.remember(ids(1), selection(9), "")
    store.remember(ids(4), selection(4), "")
    assert store.recall(ids(1), "") == selection(9) and store.recall(ids(3), "") is None


@pytest.mark.parametrize("memory_bytes", [0, SELECTION_BYTES])
def test_a_selection_larger_than_the_memory_is_not_remembered(memory_bytes):
    store = SelectionStore(memory_bytes)
    store.remember(ids(1), selection(1), "")
    assert store.recall(ids(1), "") is None and len(store) == 0


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 4))
def test_the_store_is_bounded(prompts, entries):
    store = room_for(entries)
    for prompt in prompts:
        store.remember(ids(prompt), selection(1), "")
        assert len(store) <= entries


@pytest.mark.parametrize("make", [lambda: selection(3), lambda: with_mask(200_000), lambda: with_spans(4096)])
def test_the_memory_is_bounded_in_bytes(make):
    store = SelectionStore(1_000_000)
    with held_bytes() as held:
        for prompt in range(400):
            store.remember(ids(prompt), make(), "")
    assert len(store) >= 20 and held() <= 1_000_000


def test_tenants_do_not_share():
    # A salt of four bytes looks like a token, but must not match one.
    store, token = room_for(4), int.from_bytes(b"abcd", "little")
    store.remember(ids(1), selection(1), "abcd")
    assert store.recall(ids(1), "abcd") is not None
    assert all(store.recall(*other) is None for other in ((ids(1), ""), (ids(1), "other"), (ids(token, 1), "")))
