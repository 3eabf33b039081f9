"""What a target's radix cache is expected to hold."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.estimation.block_hash import BLOCK_TOKENS
from presift.orchestrator.estimation.prefix_index import KEPT_HASHES, PrefixIndex


def ids(count, start=0):
    return np.arange(start, start + count, dtype=np.uint32)


def read(prefixes, tokens, cached=0, target="t"):
    chain = prefixes.hashes_of(tokens)
    prefixes.record_cached(target, chain, cached)
    prefixes.record_read(target, chain, cached)


def expected(prefixes, tokens, target="t"):
    return prefixes.expected(target, prefixes.hashes_of(tokens))


def test_whole_blocks_of_what_was_read_before():
    prefixes = PrefixIndex()
    assert expected(prefixes, ids(1000)) == 0
    read(prefixes, ids(1000))
    assert expected(prefixes, ids(1000)) == expected(prefixes, ids(5000)) == 1000 // BLOCK_TOKENS * BLOCK_TOKENS
    other = ids(1000)
    other[300] = 7
    assert expected(prefixes, other) == 256
    assert expected(prefixes, ids(1000, start=1)) == 0 == expected(prefixes, ids(1000), "another target")


@pytest.mark.parametrize("tokens", [64, 1024, 1025, 1088, 2048, 3000, 5120])
def test_pages_and_blocks_say_the_same(tokens):
    prefixes = PrefixIndex()
    read(prefixes, ids(tokens))
    for asked in (64, 1000, 1024, 1100, 2048, 4000, 9000):
        assert expected(prefixes, ids(asked)) == min(asked, tokens) // BLOCK_TOKENS * BLOCK_TOKENS
    blocks = tuple(prefixes.hashes_of(ids(tokens)))
    assert prefixes.expected_of("t", blocks) == tokens // BLOCK_TOKENS * BLOCK_TOKENS
    assert prefixes.expected_of("another", blocks) == 0
    changed = ids(tokens)
    changed[tokens // 2] += 1
    assert expected(prefixes, changed) == tokens // 2 // BLOCK_TOKENS * BLOCK_TOKENS


def test_a_tenant_sees_nothing_of_another():
    prefixes, tokens = PrefixIndex(), ids(256)
    prefixes.record_read("t", prefixes.hashes_of(tokens, "a"))
    found = [prefixes.expected("t", prefixes.hashes_of(tokens, salt)) for salt in ("a", "b", "")]
    assert found == [256, 0, 0]


def test_what_was_dropped_is_not_expected_again_at_that_age():
    prefixes = PrefixIndex()
    read(prefixes, ids(640))
    read(prefixes, ids(6400, start=10_000))
    assert expected(prefixes, ids(640)) == 640
    read(prefixes, ids(640), cached=0)  # the target had dropped it
    assert expected(prefixes, ids(640)) == 640  # it has just read it again
    read(prefixes, ids(6400, start=30_000))
    assert expected(prefixes, ids(640)) == 0
    read(prefixes, ids(640), cached=639)  # it holds more now
    read(prefixes, ids(6400, start=50_000))
    assert expected(prefixes, ids(640)) == 640


def test_two_that_read_the_same_at_once_say_nothing_against_the_target():
    prefixes, document, prompt = PrefixIndex(), ids(20_000), ids(2048, start=50_000)
    read(prefixes, document)
    began = prefixes.now
    for _ in range(2):  # neither found what the other was still reading
        chain = prefixes.hashes_of(prompt)
        prefixes.record_cached("t", chain, 0, began)
        prefixes.record_read("t", chain, 0)
    assert expected(prefixes, document) == 19_968
    prefixes.record_cached("t", prefixes.hashes_of(prompt), 0, prefixes.now)  # now it does
    assert expected(prefixes, document) == 0


def test_an_entry_that_came_meanwhile_is_not_missed():
    prefixes, began = PrefixIndex(), 0
    prefixes.record_entry_use("t", "entry", 10)
    prefixes.record_entry_lookup("t", "entry", was_found=False, began=began)
    assert prefixes.expected_of("t", ("entry",)) > 0
    prefixes.record_entry_lookup("t", "entry", was_found=False, began=prefixes.now)
    assert prefixes.expected_of("t", ("entry",)) == 0


def test_a_target_that_holds_nothing_is_not_believed_again():
    prefixes = PrefixIndex()
    read(prefixes, ids(640))
    read(prefixes, ids(640), cached=0)
    assert expected(prefixes, ids(640)) == 0


@pytest.mark.parametrize("cached", [639, 600, 576])
def test_the_last_block_may_be_missing(cached):
    """The final token is always read again, and pages round down."""
    prefixes = PrefixIndex()
    read(prefixes, ids(640))
    read(prefixes, ids(640), cached=cached)
    assert expected(prefixes, ids(640)) == 640


def test_memory_is_bounded_and_beginnings_stay_longest():
    prefixes = PrefixIndex(blocks=10)
    read(prefixes, ids(100 * BLOCK_TOKENS))
    assert expected(prefixes, ids(100 * BLOCK_TOKENS)) == 10 * BLOCK_TOKENS
    read(prefixes, ids(5 * BLOCK_TOKENS, start=50_000))
    assert expected(prefixes, ids(100 * BLOCK_TOKENS)) == 5 * BLOCK_TOKENS
    for number in range(200):
        read(prefixes, ids(64 * 20, start=number), target=f"t{number}")
    caches = prefixes._caches
    assert len(caches) == 64 and all(len(each.blocks) <= 10 for each in caches.values())
    assert sys.getsizeof(caches) < 20_000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400), st.floats(0, 1)), max_size=12), st.integers(1, 400))
def test_never_more_than_was_read_nor_than_the_prompt(history, tokens):
    prefixes, longest = PrefixIndex(blocks=32), 0
    for start, count, share in history:
        read(prefixes, ids(count, start * 1000), cached=int(share * count))
        longest = max(longest, count if start == 0 else 0)
    assert 0 <= expected(prefixes, ids(tokens)) <= min(tokens, longest)


def test_block_hashes_are_computed_once_per_array():
    prefixes, tokens = PrefixIndex(), ids(1000)
    assert prefixes.hashes_of(tokens) is prefixes.hashes_of(tokens) is not prefixes.hashes_of(tokens.copy())
    assert (
        prefixes.hashes_of(tokens).name
        == prefixes.hashes_of(tokens.copy()).name
        != prefixes.hashes_of(tokens[:-1]).name
    )
    assert prefixes.hashes_of(tokens).name != prefixes.hashes_of(tokens, "b").name
    arrays = [ids(10, start) for start in range(KEPT_HASHES + 1)]
    chains = [prefixes.hashes_of(each) for each in arrays]
    assert prefixes.hashes_of(arrays[-1]) is chains[-1] and len(prefixes._hashes) == KEPT_HASHES
