"""What a target's radix cache is expected to hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.estimation.block_hash import BLOCK_TOKENS, BlockHashes
from presift.orchestrator.estimation.prefix_index import BLOCK_BYTES, HASHES_BYTES, PrefixIndex

from ....held_bytes import held_bytes


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
    prefixes.record_entry_use("t", 7, 10)
    prefixes.record_entry_lookup("t", 7, was_found=False, began=began)
    assert prefixes.expected_of("t", (7,)) > 0
    prefixes.record_entry_lookup("t", 7, was_found=False, began=prefixes.now)
    assert prefixes.expected_of("t", (7,)) == 0


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
    prefixes = PrefixIndex(10 * BLOCK_BYTES)
    read(prefixes, ids(100 * BLOCK_TOKENS))
    assert expected(prefixes, ids(100 * BLOCK_TOKENS)) == 10 * BLOCK_TOKENS
    read(prefixes, ids(5 * BLOCK_TOKENS, start=50_000))
    assert expected(prefixes, ids(100 * BLOCK_TOKENS)) == 5 * BLOCK_TOKENS
    for number in range(200):
        read(prefixes, ids(64 * 20, start=number), target=f"t{number}")
    assert list(prefixes._caches) == ["t199"] and len(prefixes._caches["t199"].blocks) == 10


@pytest.mark.parametrize("targets", [1, 7, 100])
def test_targets_and_drafts_share_one_budget_of_bytes(targets):
    prefixes, prompts = PrefixIndex(2 * 2**20), [ids(64_000, start=number) for number in range(20)]
    for prompt in prompts:
        prefixes.hashes_of(prompt).name  # noqa: B018 - kept in a memory of their own
    with held_bytes() as held:
        for number in range(400):
            prefixes.record_read(f"t{number % targets}", BlockHashes(prompts[number % 20], b"%d" % (number % 40)))
    blocks = sum(len(each.blocks) for each in prefixes._caches.values())
    assert blocks == 2 * 2**20 // BLOCK_BYTES and held() <= 2 * 2**20


def test_the_prompt_read_longest_ago_by_any_target_is_evicted_first():
    prefixes = PrefixIndex(30 * BLOCK_BYTES)
    read(prefixes, ids(640), target="busy")
    read(prefixes, ids(640, start=5000), target="quiet")
    read(prefixes, ids(640, start=6000), target="busy")
    read(prefixes, ids(320, start=7000), target="busy")
    assert [expected(prefixes, ids(640), "busy"), expected(prefixes, ids(640, 5000), "quiet")] == [320, 640]
    read(prefixes, ids(640, start=8000), target="busy")
    assert expected(prefixes, ids(640, 5000), "quiet") == 320
    read(prefixes, ids(30 * 64, start=9000), target="busy")
    assert list(prefixes._caches) == ["busy"]


def test_a_prompt_shorter_than_a_block_leaves_nothing():
    prefixes = PrefixIndex()
    for number in range(9):
        read(prefixes, ids(10), target=f"t{number}")
    assert not prefixes._caches


def test_an_index_without_memory_expects_nothing():
    prefixes = PrefixIndex(0)
    read(prefixes, ids(1000))
    assert expected(prefixes, ids(1000)) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400), st.floats(0, 1)), max_size=12), st.integers(1, 400))
def test_never_more_than_was_read_nor_than_the_prompt(history, tokens):
    prefixes, longest = PrefixIndex(32 * BLOCK_BYTES), 0
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


def test_hashes_are_bounded_in_bytes():
    prefixes = PrefixIndex()
    with held_bytes() as held:
        for start in range(60):
            hashes = prefixes.hashes_of(ids(200_000, start))
            assert len(list(hashes)) == 3125
    assert prefixes._hashes and held() <= HASHES_BYTES
    for start in range(200_000):
        prefixes.hashes_of(ids(1, start))
    assert len(prefixes._hashes) < HASHES_BYTES // 1000


@pytest.mark.parametrize("known_tokens", [1, 63, 64, 1023, 1024, 1025, 2048, 2500])
@pytest.mark.parametrize("more_tokens", [0, 1, 64, 1024])
def test_tokens_after_a_prompt_have_the_hashes_of_the_longer_prompt(known_tokens, more_tokens):
    ids = np.arange(known_tokens + more_tokens, dtype=np.uint32)
    prompt, whole = BlockHashes(ids[:known_tokens], b"salt"), BlockHashes(ids, b"salt")
    for _ in range(2):  # without, and then with known hashes
        longer = prompt.followed_by(ids[known_tokens:].tolist())
        assert (longer.tokens, longer.name, list(longer)) == (whole.tokens, whole.name, list(whole))
        list(prompt)
