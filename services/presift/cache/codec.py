"""A compressed prompt as a few hundred bytes: a protobuf message in a zstd frame, safe to read from an untrusted store.

value = magic "PSC" | version u8 | tag 16 bytes | one zstd frame of a CachedPrompt (value.proto)
tag   = BLAKE2b-128 over the frame, keyed with the digest: a value under another key does not verify

The tag finds damage and mix-ups. It is no signature: whoever can write to the store and knows a digest can forge a
value. So sizes are checked and memory is bounded even if the tag verifies.
"""

from __future__ import annotations

import hashlib
import hmac

import zstandard
from google.protobuf.message import DecodeError

from presift.cache.value_pb2 import CachedPrompt
from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_LOOKAHEAD_TOKENS, MAX_PROMPT_TOKENS
from presift.core.plan import CompressedPrompt, SpanRef
from presift.rpc.codec import model_from_wire, model_to_wire, token_mask_from_wire, token_mask_to_wire

# Part of the key: an orchestrator of another version misses, and does not drop the value as corrupt.
VERSION = 2
# The largest mask has 128 KiB.
MAX_MESSAGE_BYTES = 1 << 20

_MAGIC = b"PSC" + bytes([VERSION])
_TAG_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + _TAG_BYTES


class CorruptValue(Exception):
    """The bytes are not a value of this digest and version. Never leaves this package."""


class ValueTooLarge(Exception):
    """The value is larger than the store accepts. Never leaves this package."""


def encode(digest: str, value: CompressedPrompt, max_bytes: int) -> bytes:
    """The value as bytes bound to `digest` (hex). Raises ValueTooLarge if it takes more than `max_bytes`."""
    if value.mask.prompt_tokens > MAX_PROMPT_TOKENS or len(value.lookahead_token_ids) > MAX_LOOKAHEAD_TOKENS:
        raise ValueTooLarge
    message = _to_message(value).SerializeToString()
    frame = zstandard.compress(message)
    data = _MAGIC + _tag(digest, frame) + frame
    if len(data) > max_bytes or len(message) > MAX_MESSAGE_BYTES:
        raise ValueTooLarge
    return data


def decode(digest: str, data: bytes) -> CompressedPrompt:
    """The value that `encode` made for `digest`. Takes a few MAX_MESSAGE_BYTES of memory at most, whatever `data` is.

    Raises CorruptValue for anything else.
    """
    magic, tag, frame = data[: len(_MAGIC)], data[len(_MAGIC) : _HEAD_BYTES], data[_HEAD_BYTES:]
    if magic != _MAGIC or not hmac.compare_digest(tag, _tag(digest, frame)):
        raise CorruptValue
    try:
        return _from_message(CachedPrompt.FromString(_unpack(frame)))
    except (DecodeError, zstandard.ZstdError, InvalidRequest) as error:
        raise CorruptValue from error


def _tag(digest: str, frame: bytes) -> bytes:
    return hashlib.blake2b(frame, digest_size=_TAG_BYTES, key=bytes.fromhex(digest), person=_MAGIC).digest()


def _unpack(frame: bytes) -> bytes:
    # The frame's own claim decides how much memory is allocated, so it is checked first; -1 means no claim.
    claimed_bytes = zstandard.frame_content_size(frame)
    if not 0 < claimed_bytes <= MAX_MESSAGE_BYTES:
        raise CorruptValue
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_MESSAGE_BYTES)
    return reader.decompress(frame, max_output_size=claimed_bytes, allow_extra_data=False)


def _to_message(value: CompressedPrompt) -> CachedPrompt:
    made_in = value.made_in
    return CachedPrompt(
        token_mask=token_mask_to_wire(value.mask),
        lookahead_token_ids=value.lookahead_token_ids,
        coverage=value.coverage,
        draft=model_to_wire(value.draft),
        kv_capacity=value.kv_capacity,
        kv_coverage=value.kv_coverage,
        trace_id=b"" if made_in is None else bytes.fromhex(made_in.trace_id),
        span_id=b"" if made_in is None else bytes.fromhex(made_in.span_id),
    )


def _from_message(message: CachedPrompt) -> CompressedPrompt:
    """Raises InvalidRequest or CorruptValue for a message that `_to_message` cannot have made."""
    if message.token_mask.prompt_tokens > MAX_PROMPT_TOKENS or len(message.lookahead_token_ids) > MAX_LOOKAHEAD_TOKENS:
        raise CorruptValue
    if not message.HasField("draft"):
        raise CorruptValue
    has_span = message.trace_id or message.span_id
    return CompressedPrompt(
        mask=token_mask_from_wire(message.token_mask),
        lookahead_token_ids=tuple(message.lookahead_token_ids),
        coverage=message.coverage if message.HasField("coverage") else None,
        draft=model_from_wire(message.draft),
        kv_capacity=message.kv_capacity if message.HasField("kv_capacity") else None,
        kv_coverage=message.kv_coverage if message.HasField("kv_coverage") else None,
        made_in=SpanRef(message.trace_id.hex(), message.span_id.hex()) if has_span else None,
    )
