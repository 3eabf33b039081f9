"""A compressed prompt as a few hundred bytes: a protobuf message in a zstd frame, safe to read from an untrusted store.

value = magic "PSC" | version u8 | tag 16 bytes | one zstd frame of a CachedPrompt (value.proto)
tag   = BLAKE2b-128 over all that follows, keyed with HMAC-SHA256(deployment's salt, digest)

So a value under another key does not verify, and nobody who can write to the store but lacks the salt can make one that
does. Without a salt the tag finds only damage and mix-ups. Sizes are checked and memory is bounded even if it verifies.

Orchestrators of several versions share a store. What a later version adds (fields, bytes after the frame) is skipped.
A value that this version cannot read is no corrupt one: only bytes without the magic, or with a wrong tag, are.
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
VERSION = 3
# The largest mask has 128 KiB.
MAX_MESSAGE_BYTES = 1 << 20

NAME = b"PSC"
_MAGIC = NAME + bytes([VERSION])
_TAG_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + _TAG_BYTES


class CorruptValue(Exception):
    """The bytes are no value of this digest. Never leaves this package."""


class OtherVersion(Exception):
    """A value that another version of presift may be able to read. Never leaves this package."""


class ValueTooLarge(Exception):
    """The value is larger than the store accepts. Never leaves this package."""


def encode(digest: str, value: CompressedPrompt, max_bytes: int, salt: str = "") -> bytes:
    """The value as bytes bound to `digest` (hex) and `salt`. Raises ValueTooLarge if it takes more than `max_bytes`."""
    if value.mask.prompt_tokens > MAX_PROMPT_TOKENS or len(value.lookahead_token_ids) > MAX_LOOKAHEAD_TOKENS:
        raise ValueTooLarge
    message = _to_message(value).SerializeToString()
    frame = zstandard.compress(message)
    data = _MAGIC + _tag(digest, frame, salt) + frame
    if len(data) > max_bytes or len(message) > MAX_MESSAGE_BYTES:
        raise ValueTooLarge
    return data


def decode(digest: str, data: bytes, salt: str = "") -> CompressedPrompt:
    """The value that `encode` made for `digest` and `salt`. Takes a few MAX_MESSAGE_BYTES of memory at most, whatever
    `data` is.

    Raises CorruptValue for bytes without the magic or with a wrong tag, OtherVersion for others that it cannot read.
    """
    magic, tag, frame = data[: len(_MAGIC)], data[len(_MAGIC) : _HEAD_BYTES], data[_HEAD_BYTES:]
    if magic.startswith(NAME) and len(magic) == len(_MAGIC) and magic != _MAGIC:
        raise OtherVersion
    if magic != _MAGIC or not hmac.compare_digest(tag, _tag(digest, frame, salt)):
        raise CorruptValue
    try:
        return _from_message(CachedPrompt.FromString(_unpack(frame)))
    except (DecodeError, zstandard.ZstdError, InvalidRequest) as error:
        raise OtherVersion from error


def _tag(digest: str, frame: bytes, salt: str) -> bytes:
    key = hmac.digest(salt.encode(), bytes.fromhex(digest), "sha256")
    return hashlib.blake2b(frame, digest_size=_TAG_BYTES, key=key, person=_MAGIC).digest()


def _unpack(frame: bytes) -> bytes:
    # The frame's own claim decides how much memory is allocated, so it is checked first; -1 means no claim.
    claimed_bytes = zstandard.frame_content_size(frame)
    if not 0 < claimed_bytes <= MAX_MESSAGE_BYTES:
        raise OtherVersion
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_MESSAGE_BYTES)
    return reader.decompress(frame, max_output_size=claimed_bytes, allow_extra_data=True)


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
    """Raises InvalidRequest or OtherVersion for a message that `_to_message` cannot have made."""
    if message.token_mask.prompt_tokens > MAX_PROMPT_TOKENS or len(message.lookahead_token_ids) > MAX_LOOKAHEAD_TOKENS:
        raise OtherVersion
    if not message.HasField("draft"):
        raise OtherVersion
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
