"""The codec: round trips, sizes, and bytes that must never become a wrong value, nor cost much memory."""

import contextlib
import hashlib
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
from presift.cache.codec import MAX_MESSAGE_BYTES, CorruptValue, OtherVersion, ValueTooLarge, decode, encode
from presift.cache.value_pb2 import CachedPrompt
from presift.core.limits import MAX_LOOKAHEAD_TOKENS, MAX_PROMPT_TOKENS
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo, SpanRef
from presift.v1.plan_pb2 import ModelInfo as WireModel
from presift.v1.plan_pb2 import TokenMask as WireMask

from ...builders import token_mask

MODEL = ModelInfo("Qwen/Qwen2.5-0.5B", "a1b2c3d4" * 5, "sha256:" + "9f" * 32, 32_768, 24, 2, 151_936)
DIGEST = hashlib.sha256(b"a prompt").hexdigest()
OTHER_DIGEST = hashlib.sha256(b"another prompt").hexdigest()
ROOMY = 1 << 20
VERSION_BYTE = 3

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
    mask = token_mask(np.argsort(-pooled, kind="stable")[:kept_tokens], prompt_tokens)
    return CompressedPrompt(mask, (198,), 0.93, MODEL)


def sealed(frame: bytes) -> bytes:
    """`frame` with a tag that verifies without a salt: what a later version, or a forger, could store."""
    return codec._MAGIC + codec._tag(DIGEST, frame, "") + frame


def message(**changes: object) -> bytes:
    """The message of a three-token mask, with some fields changed; None leaves one out."""
    fields: dict[str, object] = {"token_mask": WireMask(prompt_tokens=3, kept=b"\x05"), "draft": WireModel(id="m")}
    fields |= changes
    return CachedPrompt(**fields).SerializeToString()  # type: ignore[arg-type]


def forged(**changes: object) -> bytes:
    return zstandard.compress(message(**changes))


@given(values | counted)
def test_what_is_decoded_equals_what_was_encoded(value: CompressedPrompt) -> None:
    assert decode(DIGEST, encode(DIGEST, value, ROOMY)) == value


@given(values | counted, spans)
def test_where_it_was_made_goes_along(value: CompressedPrompt, made_in: SpanRef) -> None:
    traced = decode(DIGEST, encode(DIGEST, replace(value, made_in=made_in), ROOMY))
    assert traced == value and traced.made_in == made_in
    assert decode(DIGEST, encode(DIGEST, value, ROOMY)).made_in is None


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
        with pytest.raises(OtherVersion if bit // 8 == VERSION_BYTE else CorruptValue):
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


@pytest.mark.parametrize(("prompt_tokens", "lookahead_tokens"), [(MAX_PROMPT_TOKENS, 0), (8, MAX_LOOKAHEAD_TOKENS)])
def test_what_could_not_be_read_back_is_not_written(prompt_tokens: int, lookahead_tokens: int) -> None:
    largest = CompressedPrompt(TokenMask(np.ones(prompt_tokens, np.bool_)), (0,) * lookahead_tokens, None, MODEL)
    assert decode(DIGEST, encode(DIGEST, largest, ROOMY)) == largest
    too_long = TokenMask(np.ones(prompt_tokens + 1, np.bool_)) if not lookahead_tokens else largest.mask
    lookahead = (0,) * (lookahead_tokens + 1) if lookahead_tokens else ()
    with pytest.raises(ValueTooLarge):
        encode(DIGEST, CompressedPrompt(too_long, lookahead, None, MODEL), 1 << 30)


def test_a_message_that_could_not_be_read_back_is_not_written() -> None:
    long_name = replace(MODEL, id="m" * MAX_MESSAGE_BYTES)
    with pytest.raises(ValueTooLarge):
        encode(DIGEST, CompressedPrompt(TokenMask(np.ones(8, np.bool_)), (), None, long_name), 1 << 30)


def test_the_helpers_of_this_test_make_a_valid_value() -> None:
    assert decode(DIGEST, sealed(forged())).mask == TokenMask(np.array([True, False, True]))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        message(),  # not a zstd frame
        zstandard.compress(b""),
        zstandard.compress(message()[:-1]),
        zstandard.compress(message() + b"\x00"),
        forged(token_mask=None),
        forged(token_mask=WireMask(prompt_tokens=0)),
        forged(token_mask=WireMask(prompt_tokens=2, kept=b"\x05")),  # a set bit past the prompt
        forged(token_mask=WireMask(prompt_tokens=9, kept=b"\x05")),
        forged(token_mask=WireMask(prompt_tokens=3, kept=b"\x05\x00")),
        forged(token_mask=WireMask(prompt_tokens=2**32 - 1, kept=b"\x05")),
        forged(token_mask=WireMask(prompt_tokens=MAX_PROMPT_TOKENS + 8, kept=bytes(MAX_PROMPT_TOKENS // 8 + 1))),
        forged(lookahead_token_ids=[0] * (MAX_LOOKAHEAD_TOKENS + 1)),
        forged(draft=None),
        forged(coverage=1.5),
        forged(coverage=float("inf")),
        forged(coverage=float("nan")),
        forged(kv_coverage=-0.1),
        forged(kv_capacity=0),
        forged(trace_id=bytes(16), span_id=bytes(8)),  # a trace of zeros
        forged(trace_id=b"\x01" * 16),
        forged(trace_id=b"\x01" * 16, span_id=bytes(8)),
        forged(trace_id=b"\x01" * 15, span_id=b"\x01" * 8),
        zstandard.compress(message(draft=None) + b"\x22\x03\x0a\x01\xff"),  # a model id that is not UTF-8
    ],
)
def test_a_sealed_value_that_cannot_be_read_is_of_another_version(frame: bytes) -> None:
    with pytest.raises(OtherVersion):
        decode(DIGEST, sealed(frame))


def _bombs() -> dict[str, bytes]:
    zeros = bytes(256 << 20)
    honest = zstandard.compress(zeros)
    claim = struct.pack("<I", len(zeros))
    return {
        "honest about its size": honest,
        "claims to be small": honest.replace(claim, struct.pack("<I", 1000), 1),
        "claims to be just allowed": honest.replace(claim, struct.pack("<I", MAX_MESSAGE_BYTES), 1),
        "claims nothing": zstandard.ZstdCompressor(write_content_size=False).compress(zeros),
    }


def test_a_bomb_costs_no_memory() -> None:
    for name, frame in _bombs().items():
        tracemalloc.start()
        with pytest.raises(OtherVersion):
            decode(DIGEST, sealed(frame))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < MAX_MESSAGE_BYTES + (1 << 20), name


def test_a_message_of_many_small_fields_costs_little_memory() -> None:
    ids = forged(lookahead_token_ids=[0] * (MAX_MESSAGE_BYTES - 100))
    tracemalloc.start()
    with pytest.raises(OtherVersion):
        decode(DIGEST, sealed(ids))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2 * MAX_MESSAGE_BYTES


@given(st.binary(max_size=300), st.booleans())
def test_hostile_bytes_with_a_valid_tag_are_a_value_or_refused(rest: bytes, is_packed: bool) -> None:
    with contextlib.suppress(OtherVersion):
        frame = zstandard.compress(rest) if is_packed else rest
        assert isinstance(decode(DIGEST, sealed(frame)), CompressedPrompt)


wire_masks = st.builds(WireMask, prompt_tokens=uint32s | st.integers(0, 40), kept=st.binary(max_size=6))
messages = st.fixed_dictionaries(
    {"token_mask": wire_masks},
    optional={
        "coverage": st.floats(),
        "kv_coverage": st.floats(),
        "kv_capacity": uint32s,
        "trace_id": st.binary(max_size=20),
        "span_id": st.binary(max_size=10),
    },
)


@given(messages, st.binary(max_size=20))
def test_hostile_messages_are_a_value_or_refused(fields: dict[str, object], rest: bytes) -> None:
    with contextlib.suppress(OtherVersion):
        assert isinstance(decode(DIGEST, sealed(zstandard.compress(message(**fields) + rest))), CompressedPrompt)


def test_a_stored_value_of_version_3_is_still_read() -> None:
    """Raise codec.VERSION if this fails: deployed caches hold such values."""
    value = CompressedPrompt(token_mask([0, 2, 9], 10), (7, 4_000_000_000), 0.5, MODEL, 2, 0.25, SPAN)
    decoded = decode(DIGEST, bytes.fromhex(GOLDEN), SALT)
    assert decoded == value and decoded.made_in == SPAN


@pytest.mark.parametrize("version", [1, 2, 4, 255])
def test_a_value_of_another_version_is_not_corrupt(version: int) -> None:
    """Neither an older one (GOLDEN_1, GOLDEN_2 were stored by such versions) nor a later one of any form."""
    stored = {1: bytes.fromhex(GOLDEN_1), 2: bytes.fromhex(GOLDEN_2)}.get(version, b"PSC" + bytes([version]) + b"x" * 9)
    with pytest.raises(OtherVersion):
        decode(DIGEST, stored)


# Fields that this version does not know, as a later one could write them: number 15 and 100, of several wire types.
LATER_FIELDS = [b"\x78\x01", b"\x7a\x03new", b"\xa2\x06\x02\x08\x01", b"\x79" + bytes(8), b"\x7d" + bytes(4)]


@pytest.mark.parametrize("field", LATER_FIELDS)
def test_what_a_later_version_adds_is_skipped(field: bytes) -> None:
    read = decode(DIGEST, sealed(forged()))
    model = WireModel(id="m").SerializeToString() + field
    nested = message(draft=None) + b"\x22" + bytes([len(model)]) + model  # in the draft's message
    for later in (message() + field, field + message(), nested):
        assert decode(DIGEST, sealed(zstandard.compress(later))) == read
    assert decode(DIGEST, sealed(forged() + field)) == read  # bytes after the frame


@given(values, st.text(), st.text())
def test_only_who_has_the_salt_can_make_a_value(value: CompressedPrompt, salt: str, other_salt: str) -> None:
    data = encode(DIGEST, value, ROOMY, salt)
    assert decode(DIGEST, data, salt) == value
    if salt.rstrip("\x00") != other_salt.rstrip("\x00"):  # an HMAC pads its key with zeros
        with pytest.raises(CorruptValue):
            decode(DIGEST, data, other_salt)
        with pytest.raises(CorruptValue):
            decode(OTHER_DIGEST, data, salt)


SPAN = SpanRef("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
SALT = "the deployment's salt"
GOLDEN = (
    "50534303823ac14ea15083ef7d73155027c8abcd28b52ffd20d5dd0300a4060a06080a1202050212060780d0acf30e1900e03f22"
    "92010a115177656e2f322e352d302e3542122861316232633364341a477368613235363a396620808002281830023880a3092802"
    "310000d03f3a100af7651916cd43dd8448eb211c80319c4208b7ad6b716920333105002113d4e5a469052d0aa3046007"
)
GOLDEN_2 = (
    "505343024accfd67badf86a94d4fa4596af6fdca28b52ffd20d5dd0300a4060a06080a1202050212060780d0acf30e1900e03f22"
    "92010a115177656e2f322e352d302e3542122861316232633364341a477368613235363a396620808002281830023880a3092802"
    "310000d03f3a100af7651916cd43dd8448eb211c80319c4208b7ad6b716920333105002113d4e5a469052d0aa3046007"
)
GOLDEN_1 = (
    "505343019a576036ea043e958fdb40b2cfe786900128b52ffd20bbb502001404000a00000002e03f008000001880510200110000"
    "002800000047000000050207286bee5177656e2f322e352d302e354261316232633364347368613235363a39660700cb49c70a2e"
    "14e6955ae1a65b80c3992b02"
)
