"""The codec: round trips, sizes, and bytes that must never become a wrong value, nor cost much memory."""

import contextlib
import hashlib
import math
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from presift.cache import codec
from presift.cache.codec import MAX_BODY_BYTES, CorruptValue, ValueTooLarge, decode, encode
from presift.cache.mask_coding import MaskCoding
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo, SpanRef

MODEL = ModelInfo("Qwen/Qwen2.5-0.5B", "a1b2c3d4" * 5, "sha256:" + "9f" * 32, 32_768, 24, 2, 151_936)
DIGEST = hashlib.sha256(b"a prompt").hexdigest()
OTHER_DIGEST = hashlib.sha256(b"another prompt").hexdigest()
ROOMY = 1 << 20

uint32s = st.integers(0, 2**32 - 1)
models = st.builds(ModelInfo, st.text(), st.text(), st.text(), uint32s, uint32s, uint32s, uint32s)
masks = numpy_st.arrays(np.bool_, st.integers(1, 3000), elements=st.booleans(), fill=st.booleans()).map(TokenMask)
values = st.builds(
    CompressedPrompt,
    mask=masks,
    lookahead_token_ids=st.lists(uint32s, max_size=40).map(tuple),
    coverage=st.none() | st.floats(0.0, 1.0),
    draft=models,
    kv_capacity=st.none() | st.integers(1, 2**32 - 1),
)
spans = st.builds(
    SpanRef,
    st.integers(1, 2**128 - 1).map("{:032x}".format),
    st.integers(1, 2**64 - 1).map("{:016x}".format),
)
counted = st.builds(replace, values, kv_capacity=st.integers(1, 2**32 - 1), kv_coverage=st.floats(0.0, 1.0))


def clustered(prompt_tokens: int, kept_tokens: int, seed: int = 0) -> CompressedPrompt:
    """A mask such as pooling makes: runs of kept tokens, and the window."""
    importance = np.random.default_rng(seed).lognormal(0.0, 2.0, prompt_tokens)
    pooled = np.convolve(importance, np.ones(17) / 17, "same")
    pooled[-32:] = np.inf
    mask = TokenMask.from_indices(np.argsort(-pooled, kind="stable")[:kept_tokens], prompt_tokens)
    return CompressedPrompt(mask, (198,), 0.93, MODEL)


def sealed(packed: bytes) -> bytes:
    """`packed` with a tag that verifies: what a forger with write access could store."""
    return codec._MAGIC + codec._tag(DIGEST, packed) + packed


def body(**changes: float) -> bytes:
    """The raw body of a three-token mask, with fields of its head changed."""
    head = {"coding": 0, "prompt": 3, "mask": 1, "lookahead": 0, "coverage": math.nan, "context": 1, "layers": 1}
    head |= {"kv_heads": 1, "vocabulary": 1, "id": 0, "revision": 0, "fingerprint": 0}
    return codec._HEAD.pack(*(head | changes).values()) + b"\x05"


@given(values | counted)
def test_what_is_decoded_equals_what_was_encoded(value: CompressedPrompt) -> None:
    assert decode(DIGEST, encode(DIGEST, value, ROOMY)) == value


@given(values | counted, spans)
def test_where_it_was_made_goes_along(value: CompressedPrompt, made_in: SpanRef) -> None:
    traced = decode(DIGEST, encode(DIGEST, replace(value, made_in=made_in), ROOMY))
    assert traced == value and traced.made_in == made_in
    assert decode(DIGEST, encode(DIGEST, value, ROOMY)).made_in is None


@pytest.mark.parametrize("gap", [0, 255, 256, 65_535, 65_536, 1_000_000])
def test_every_width_of_gap_round_trips(gap: int) -> None:
    value = CompressedPrompt(TokenMask.from_indices([gap, gap + 1], gap + 2), (), None, MODEL)
    assert decode(DIGEST, encode(DIGEST, value, ROOMY)) == value


@pytest.mark.parametrize(
    ("prompt_tokens", "kept_tokens", "limit_bytes"), [(4_096, 512, 500), (65_536, 8_192, 2_500), (131_072, 512, 600)]
)
def test_a_value_is_small(prompt_tokens: int, kept_tokens: int, limit_bytes: int) -> None:
    assert len(encode(DIGEST, clustered(prompt_tokens, kept_tokens), ROOMY)) <= limit_bytes


def test_no_single_flipped_bit_is_accepted() -> None:
    data = encode(DIGEST, clustered(512, 64), ROOMY)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptValue):
            decode(DIGEST, bytes(damaged))


def test_no_truncation_or_extension_is_accepted() -> None:
    data = encode(DIGEST, clustered(512, 64), ROOMY)
    for damaged in [data[:end] for end in range(len(data))] + [data + b"\x00", data + data]:
        with pytest.raises(CorruptValue):
            decode(DIGEST, damaged)


def test_a_value_under_another_digest_is_refused() -> None:
    with pytest.raises(CorruptValue):
        decode(OTHER_DIGEST, encode(DIGEST, clustered(512, 64), ROOMY))


def test_a_value_over_the_bound_is_refused() -> None:
    value = clustered(4_096, 512)
    exact_bytes = len(encode(DIGEST, value, ROOMY))
    encode(DIGEST, value, exact_bytes)
    with pytest.raises(ValueTooLarge):
        encode(DIGEST, value, exact_bytes - 1)


def test_what_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(ValueTooLarge):
        encode(DIGEST, CompressedPrompt(TokenMask(np.ones((1 << 24) + 1, np.bool_)), (), None, MODEL), 1 << 30)
    with pytest.raises(ValueTooLarge):
        encode(DIGEST, CompressedPrompt(TokenMask(np.ones(8, np.bool_)), (0,) * (3 << 20), None, MODEL), 1 << 30)


def test_the_helpers_of_this_test_make_a_valid_value() -> None:
    assert decode(DIGEST, sealed(b"\x00" + body())).mask == TokenMask(np.array([True, False, True]))


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"\x00",
        b"\x02" + body(),
        b"\x00" + body(coding=3),
        b"\x00" + body(prompt=0),
        b"\x00" + body(prompt=2),  # a set bit past the prompt
        b"\x00" + body(prompt=9),
        b"\x00" + body(prompt=2**32 - 1),
        b"\x00" + body(coding=MaskCoding.GAPS_8, prompt=5),  # the gap of 5 names token 5
        b"\x00" + body(coding=MaskCoding.GAPS_8, prompt=2**32 - 1),  # 4 GiB of flags
        b"\x00" + body(coding=MaskCoding.GAPS_16),  # one byte is half a gap
        b"\x00" + body(mask=2),
        b"\x00" + body(mask=0),
        b"\x00" + body(lookahead=2**32 - 1),
        b"\x00" + body(id=2**32 - 1),
        b"\x00" + body(coverage=1.5),
        b"\x00" + body(coverage=math.inf),
        b"\x00" + body(id=1) + b"\xff",  # not UTF-8
        b"\x00" + body() + b"\x00",
        b"\x00" + body() + bytes(4),  # a KV capacity of 0
        b"\x00" + body() + b"\x01" + bytes(4),
        b"\x00" + body() + bytes(24),  # a trace of zeros
        b"\x00" + body() + b"\x01" * 16 + bytes(8),
        b"\x00" + body() + b"\x01" * 26,  # two bytes are no KV capacity
        b"\x01" + body(),  # not a zstd frame
        b"\x01" + zstandard.compress(body()) + b"\x00",
        b"\x01" + zstandard.compress(b""),
    ],
)
def test_a_forged_body_is_refused(forged: bytes) -> None:
    with pytest.raises(CorruptValue):
        decode(DIGEST, sealed(forged))


def _bombs() -> dict[str, bytes]:
    zeros = bytes(256 << 20)
    honest = zstandard.compress(zeros)
    claim = struct.pack("<I", len(zeros))
    return {
        "honest about its size": honest,
        "claims to be small": honest.replace(claim, struct.pack("<I", 1000), 1),
        "claims to be just allowed": honest.replace(claim, struct.pack("<I", MAX_BODY_BYTES), 1),
        "claims nothing": zstandard.ZstdCompressor(write_content_size=False).compress(zeros),
    }


def test_a_bomb_costs_no_memory() -> None:
    for name, frame in _bombs().items():
        tracemalloc.start()
        with pytest.raises(CorruptValue):
            decode(DIGEST, sealed(b"\x01" + frame))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < MAX_BODY_BYTES + (1 << 20), name


@given(st.sampled_from([b"\x00", b"\x01"]), st.binary(max_size=300))
def test_hostile_bytes_with_a_valid_tag_are_a_value_or_corrupt(packing: bytes, rest: bytes) -> None:
    with contextlib.suppress(CorruptValue):
        assert isinstance(decode(DIGEST, sealed(packing + rest)), CompressedPrompt)


counts = st.integers(0, 40)
heads = st.fixed_dictionaries(
    {"coding": st.integers(0, 4), "prompt": uint32s | counts, "mask": counts, "lookahead": counts},
    optional={"coverage": st.floats(), "id": counts, "fingerprint": uint32s},
)


@given(heads, st.binary())
def test_hostile_heads_are_a_value_or_corrupt(head: dict[str, float], rest: bytes) -> None:
    with contextlib.suppress(CorruptValue):
        assert isinstance(decode(DIGEST, sealed(b"\x00" + body(**head) + rest)), CompressedPrompt)


def test_a_stored_value_of_version_1_is_still_read() -> None:
    """Raise codec.VERSION if this fails: deployed caches hold such values."""
    value = CompressedPrompt(TokenMask.from_indices([0, 2, 9], 10), (7, 4_000_000_000), 0.5, MODEL)
    assert decode(DIGEST, bytes.fromhex(GOLDEN)) == value


GOLDEN = (
    "505343019a576036ea043e958fdb40b2cfe786900128b52ffd20bbb502001404000a00000002e03f008000001880510200110000"
    "002800000047000000050207286bee5177656e2f322e352d302e354261316232633364347368613235363a39660700cb49c70a2e"
    "14e6955ae1a65b80c3992b02"
)
