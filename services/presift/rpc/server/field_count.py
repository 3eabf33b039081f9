"""Counts the fields of a protobuf message before it is parsed.

A sub-message takes two bytes on the wire and some hundred in memory: parsed, 24 MiB of empty ones are 1.3 GiB. The
tables of limits (`limits.py`) are checked on the parsed message, which is too late for that.
"""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from presift.core.errors import InvalidRequest

# More than a request within the tables of limits can have; counting them takes about 40 ms.
MAX_FIELDS = 65_536
# A field takes at least two bytes, so shorter messages need not be counted.
_SHORT = 2 * MAX_FIELDS
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_field_count(raw: bytes, descriptor: Descriptor) -> None:
    """Raise InvalidRequest for more than MAX_FIELDS fields, and DecodeError for a message that is cut off.

    Counted are all fields of the messages that may hold a list of strings or messages. Others use about as much memory
    as they take on the wire, however many fields they have.
    """
    if len(raw) <= _SHORT:
        return
    count, parts = 0, [(0, len(raw), descriptor)]
    while parts:
        place, end, current = parts.pop()
        lists = _sub_messages_with_lists(current)
        while place < end:
            count += 1
            if count > MAX_FIELDS:
                raise InvalidRequest("request", f"more than {MAX_FIELDS} fields", f"at most {MAX_FIELDS}")
            # Nearly all tags have one byte, and a call takes longer than all else here.
            tag, place = (raw[place], place + 1) if raw[place] < 0x80 else _varint(raw, place)
            if tag & 7 != _BYTES:
                place = _skipped(raw, place, tag & 7)
                continue
            length, start = _varint(raw, place)
            place = start + length
            if (inner := lists.get(tag >> 3)) is not None:
                parts.append((start, place, inner))
        if place > end:
            raise DecodeError("cut off")


def _skipped(raw: bytes, place: int, wire_type: int) -> int:
    """Where the content of a number ends."""
    if wire_type == _VARINT:
        return _varint(raw, place)[1]
    if wire_type in (_FIXED64, _FIXED32):
        return place + (8 if wire_type == _FIXED64 else 4)
    raise DecodeError("unknown wire type")  # groups: proto3 has none


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    if place < len(raw) and (byte := raw[place]) < 0x80:  # nearly always
        return byte, place + 1
    value = shift = 0
    while place < len(raw) and shift < 70:
        byte = raw[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise DecodeError("cut off")


@cache
def _sub_messages_with_lists(descriptor: Descriptor) -> dict[int, Descriptor]:
    """The fields, by number, whose messages may hold a list of strings or messages, at any depth."""
    found = {each.number: each.message_type for each in descriptor.fields if each.message_type is not None}
    return {number: inner for number, inner in found.items() if _has_list(inner)}


def _has_list(descriptor: Descriptor) -> bool:
    lists = [each for each in descriptor.fields if each.is_repeated and not _is_packable(each)]
    return bool(lists or _sub_messages_with_lists(descriptor))


def _is_packable(field: FieldDescriptor) -> bool:
    return field.type not in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
