"""A compressed prompt as a versioned value of a few hundred bytes, safe to read back from an untrusted place.

value  = magic "PSC" | version u8 | tag 16 bytes | packing u8 | body, or one zstd frame of it if that is smaller
tag    = BLAKE2b-128 over packing and body, keyed with the digest: a value under another key does not verify
body   = head (see _HEAD) | mask | lookahead ids, u32 each | model id | revision | tokenizer fingerprint (UTF-8)
         | KV capacity u32 | KV coverage f64 | trace id 16 bytes, span id 8 bytes: each only if there is one (of the
           coverage: if there is a capacity too); values without are as they were before there could be

All integers little-endian. The tag finds damage and mix-ups; it is no signature: whoever may write to the store and
knows a digest can forge a value, so lengths are checked and memory is bounded even where the tag verifies.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct

import numpy as np
import zstandard

from presift.cache.mask_coding import MaskCoding, candidates, decode_mask
from presift.core.errors import InvalidRequest
from presift.core.plan import CompressedPrompt, ModelInfo, SpanRef

VERSION = 1
MAX_PROMPT_TOKENS = 1 << 24
MAX_BODY_BYTES = 8 << 20

_MAGIC = b"PSC" + bytes([VERSION])
_TAG_BYTES = 16
_RAW, _ZSTD = b"\x00", b"\x01"
# mask coding; prompt_tokens, mask bytes, lookahead count; coverage (NaN: none); the model's four numbers; its three
# string lengths in bytes
_HEAD = struct.Struct("<B3Id4I3I")
_KV_CAPACITY, _KV_COUNT = struct.Struct("<I"), struct.Struct("<Id")
# Longer than all that may stand before it, so that its presence can be told by the length.
_MADE_IN = struct.Struct("16s8s")


class CorruptValue(Exception):
    """The bytes are not a value of this digest and version. Never leaves this package."""


class ValueTooLarge(Exception):
    """The value is over what may be stored. Never leaves this package."""


def encode(digest: str, value: CompressedPrompt, max_bytes: int) -> bytes:
    """The value as bytes bound to `digest` (hex). Raises ValueTooLarge if it takes more than `max_bytes`."""
    if value.mask.prompt_tokens > MAX_PROMPT_TOKENS:
        raise ValueTooLarge
    bodies = [_body(value, coding, mask) for coding, mask in candidates(value.mask)]
    packed = min(map(_pack, bodies), key=len)
    data = _MAGIC + _tag(digest, packed) + packed
    if len(data) > max_bytes or max(map(len, bodies)) > MAX_BODY_BYTES:
        raise ValueTooLarge
    return data


def decode(digest: str, data: bytes) -> CompressedPrompt:
    """The value that `encode` made for `digest`. Takes at most MAX_BODY_BYTES + MAX_PROMPT_TOKENS of memory, whatever
    `data` says. Raises CorruptValue for anything else.
    """
    magic, tag, packed = _split(data, len(_MAGIC), _TAG_BYTES)
    if magic != _MAGIC or not hmac.compare_digest(tag, _tag(digest, packed)):
        raise CorruptValue
    try:
        return _read_body(_unpack(packed))
    except (ValueError, struct.error, zstandard.ZstdError, InvalidRequest) as error:
        raise CorruptValue from error


def _tag(digest: str, packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=_TAG_BYTES, key=bytes.fromhex(digest), person=_MAGIC).digest()


def _pack(body: bytes) -> bytes:
    return min(_RAW + body, _ZSTD + zstandard.compress(body), key=len)


def _unpack(packed: bytes) -> bytes:
    packing, rest = packed[:1], packed[1:]
    if packing == _RAW:
        return rest
    # The frame's own claim decides how much is allocated, so it is checked first; -1 means that it claims nothing.
    claimed_bytes = zstandard.frame_content_size(rest)
    if packing != _ZSTD or not 0 < claimed_bytes <= MAX_BODY_BYTES:
        raise CorruptValue
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_BODY_BYTES)
    return reader.decompress(rest, max_output_size=claimed_bytes, allow_extra_data=False)


def _body(value: CompressedPrompt, coding: MaskCoding, mask: bytes) -> bytes:
    draft = value.draft
    names = [name.encode() for name in (draft.id, draft.revision, draft.tokenizer_fingerprint)]
    numbers = (draft.context_tokens, draft.layers, draft.kv_heads, draft.vocabulary_size)
    lookahead = np.array(value.lookahead_token_ids, dtype="<u4")
    coverage = math.nan if value.coverage is None else value.coverage
    counts = (value.mask.prompt_tokens, len(mask), lookahead.size)
    head = _HEAD.pack(coding, *counts, coverage, *numbers, *map(len, names))
    return b"".join((head, mask, lookahead.tobytes(), *names, _kv_count(value), _made_in(value)))


def _kv_count(value: CompressedPrompt) -> bytes:
    if value.kv_capacity is None:
        return b""
    if value.kv_coverage is None:
        return _KV_CAPACITY.pack(value.kv_capacity)
    return _KV_COUNT.pack(value.kv_capacity, value.kv_coverage)


def _read_kv_count(data: bytes) -> tuple[int | None, float | None]:
    if not data:
        return None, None
    if len(data) == _KV_CAPACITY.size:
        return _KV_CAPACITY.unpack(data)[0], None
    capacity, coverage = _KV_COUNT.unpack(data)
    return capacity, coverage


def _made_in(value: CompressedPrompt) -> bytes:
    if value.made_in is None:
        return b""
    return bytes.fromhex(value.made_in.trace_id) + bytes.fromhex(value.made_in.span_id)


def _read_made_in(data: bytes) -> tuple[bytes, SpanRef | None]:
    """What stands before it, and it."""
    if len(data) < _MADE_IN.size:
        return data, None
    rest, ids = _split(data, len(data) - _MADE_IN.size)
    trace_id, span_id = _MADE_IN.unpack(ids)
    return rest, SpanRef(trace_id.hex(), span_id.hex())


def _read_body(body: bytes) -> CompressedPrompt:
    coding, prompt_tokens, mask_bytes, lookahead_count, coverage, *rest = _HEAD.unpack_from(body)
    numbers, name_bytes = rest[:4], rest[4:]
    if prompt_tokens > MAX_PROMPT_TOKENS:
        raise CorruptValue
    pieces = _split(body[_HEAD.size :], mask_bytes, 4 * lookahead_count, *name_bytes)
    mask, lookahead, model_id, revision, fingerprint, rest_bytes = pieces
    counted, made_in = _read_made_in(rest_bytes)
    kv_capacity, kv_coverage = _read_kv_count(counted)
    return CompressedPrompt(
        mask=decode_mask(MaskCoding(coding), mask, prompt_tokens),
        lookahead_token_ids=tuple(np.frombuffer(lookahead, dtype="<u4").tolist()),
        coverage=None if math.isnan(coverage) else coverage,
        draft=ModelInfo(model_id.decode(), revision.decode(), fingerprint.decode(), *numbers),
        kv_capacity=kv_capacity,
        kv_coverage=kv_coverage,
        made_in=made_in,
    )


def _split(data: bytes, *sizes: int) -> list[bytes]:
    """Pieces of the given sizes in bytes, then what is left. Raises CorruptValue if `data` is too short."""
    if len(data) < sum(sizes):
        raise CorruptValue
    ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return [data[start:end] for start, end in zip(ends, [*ends[1:], len(data)], strict=True)]
