import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from presift.core.errors import InvalidRequest
from presift.core.masks import KvMask, TokenMask

FLAGS = hnp.arrays(np.bool_, st.integers(1, 70))
KV_FLAGS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20)))


@given(FLAGS)
def test_token_bits_are_those_of_the_wire_contract(flags):
    bits = TokenMask(flags).to_bits()
    assert len(bits) == -(-flags.size // 8)
    assert [bool(bits[i // 8] >> i % 8 & 1) for i in range(flags.size)] == flags.tolist()


@given(FLAGS)
def test_token_masks_survive_the_wire(flags):
    mask = TokenMask(flags)
    assert TokenMask.from_bits(mask.to_bits(), flags.size) == mask


@given(FLAGS)
def test_a_token_mask_counts_and_lists_what_it_keeps(flags):
    mask = TokenMask(flags)
    assert mask.prompt_tokens == flags.size
    assert mask.kept_tokens == sum(flags.tolist())
    assert mask.indices.tolist() == [i for i, kept in enumerate(flags) if kept]


@given(FLAGS, st.integers(-9, 9).filter(bool))
def test_bits_of_another_length_are_refused(flags, surplus):
    bits = TokenMask(flags).to_bits()
    wrong = bits + bytes(surplus) if surplus > 0 else bits[:surplus]
    with pytest.raises(InvalidRequest) as refusal:
        TokenMask.from_bits(wrong, flags.size)
    expected = {"field": "token_mask.kept", "value": f"{len(wrong)} bytes", "limit": f"{len(bits)} bytes"}
    assert refusal.value.details == expected


@given(FLAGS.filter(lambda flags: flags.size % 8), st.data())
def test_bits_past_the_prompt_are_refused(flags, data):
    bits = bytearray(TokenMask(flags).to_bits())
    bits[-1] |= 1 << data.draw(st.integers(flags.size % 8, 7))
    with pytest.raises(InvalidRequest, match="bits past the prompt"):
        TokenMask.from_bits(bytes(bits), flags.size)


@pytest.mark.parametrize("flags", [np.ones(0, dtype=np.bool_), np.ones((2, 2), dtype=np.bool_)])
def test_a_token_mask_of_no_tokens_or_two_axes_is_refused(flags):
    with pytest.raises(InvalidRequest, match="token_mask"):
        TokenMask(flags)


@given(KV_FLAGS)
def test_kv_masks_survive_the_wire(flags):
    mask = KvMask(flags)
    assert KvMask.from_bits(mask.to_bits(), *flags.shape) == mask


def test_a_pickled_kv_mask_is_as_small_as_its_bits():
    mask = KvMask(np.random.default_rng(0).random((3, 2, 8_000)) < 0.5)
    raw = pickle.dumps(mask)
    assert pickle.loads(raw) == mask and len(raw) < 3 * 2 * 1_000 + 300


@given(KV_FLAGS)
def test_kv_bits_are_token_bits_row_by_row(flags):
    rows = flags.reshape(-1, flags.shape[2])
    assert KvMask(flags).to_bits() == b"".join(TokenMask(row).to_bits() for row in rows)


@given(FLAGS)
def test_a_uniform_kv_mask_is_one_row_for_all(flags):
    mask = KvMask.uniform(TokenMask(flags))
    assert mask.kept.shape == (1, 1, flags.size)
    assert mask.kept[0, 0].tolist() == flags.tolist()


def test_kv_bits_of_another_shape_or_with_padding_set_are_refused():
    bits = KvMask(np.ones((2, 1, 9), dtype=np.bool_)).to_bits()
    with pytest.raises(InvalidRequest, match=r"kv_mask\.kept is 4 bytes; it must be 8 bytes"):
        KvMask.from_bits(bits, 2, 2, 9)
    with pytest.raises(InvalidRequest, match="bits past the prompt"):
        KvMask.from_bits(bits[:1] + b"\xff" + bits[2:], 2, 1, 9)


@pytest.mark.parametrize("shape", [(0, 1, 4), (1, 0, 4), (1, 1, 0)])
def test_kv_bits_of_no_pairs_are_refused(shape):
    with pytest.raises(InvalidRequest, match="kv_mask"):
        KvMask.from_bits(b"", *shape)


@pytest.mark.parametrize("flags", [np.ones((2, 3), dtype=np.bool_), np.ones((2, 0, 3), dtype=np.bool_)])
def test_a_kv_mask_of_other_axes_or_no_heads_is_refused(flags):
    with pytest.raises(InvalidRequest, match="kv_mask"):
        KvMask(flags)


@pytest.mark.parametrize("mask", [TokenMask(np.ones(4, dtype=np.bool_)), KvMask(np.ones((1, 1, 4), dtype=np.bool_))])
def test_a_mask_cannot_be_written_to(mask):
    with pytest.raises(ValueError, match="read-only"):
        mask.kept[...] = False


def test_a_mask_is_a_copy_of_the_flags_it_was_given():
    flags = np.ones(4, dtype=np.bool_)
    mask = TokenMask(flags)
    flags[0] = False
    assert mask.kept.all()


@given(FLAGS, FLAGS)
def test_masks_are_equal_and_hash_alike_where_their_flags_are_equal(one, other):
    assert (TokenMask(one) == TokenMask(other)) == (one.tolist() == other.tolist())
    assert hash(TokenMask(one)) == hash(TokenMask(one.copy()))
    assert KvMask(one[None, None]) != TokenMask(one)
    assert (KvMask(one[None, None]) == KvMask(other[None, None])) == (one.tolist() == other.tolist())
    assert hash(KvMask(one[None, None])) == hash(KvMask(one.copy()[None, None]))


def test_masks_that_differ_in_trailing_dropped_tokens_alone_are_not_equal():
    assert TokenMask(np.array([True, False])) != TokenMask(np.array([True, False, False]))
