"""Mutations of valid messages: field by field through reflection, or byte by byte. The same seed, the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_UINT32, _UINT64 = (1 << 32) - 1, (1 << 64) - 1
_INT32 = (1 << 31) - 1
_EDGES = (0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 255, 256, 257, 400, 511, 512, 513, 4095, 4096, 4097, 65_535, 1 << 20)
_TEXTS = (
    *("", "x", "\0", "\ufffd", "\ue0000\ue001", "\u202e\u0301", "🙂" * 40, "é" * 300, " " * 500, "\n" * 200),
    *("system", "user", "assistant", "tool", "wizard", "{}", "[]", "{", '{"a": [1, {"b": null}]}', "[" * 3000),
    *('{"type": "function", "function": {"name": 7}}', "NaN", "1e999", "9" * 5000, "x" * 1025, "<assistant>", "%s%n"),
)
_FLOATS = (0.0, -0.0, 1.0, 0.5, 1e-45, 1e-30, -1.0, 2.0, 2.0001, 1e38, float("inf"), float("-inf"), float("nan"))


def mutated(message: Message, rng: random.Random) -> bytes:
    """`message`, serialised, with some of its fields or of its bytes changed."""
    copy = type(message)()
    copy.CopyFrom(message)
    if rng.random() < 0.7:
        for _ in range(rng.randint(1, 4)):
            found = list(slots(copy))
            if found:
                _mutate(*rng.choice(found), rng)
    raw = copy.SerializeToString()
    return raw if rng.random() < 0.65 else changed_bytes(raw, rng)


def slots(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field that there is, in the message and in all that it holds."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None or _is_map(field):
            continue
        value = getattr(message, field.name)
        inner = list(value)[:20] if field.is_repeated else [value] if message.HasField(field.name) else []
        for each in inner:
            yield from slots(each)


def _mutate(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif _is_map(field):
        _mutate_map(getattr(message, field.name), field, rng)
    elif field.is_repeated:
        _mutate_repeated(getattr(message, field.name), field, rng)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(field, rng))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _mutate_map(values: Any, field: FieldDescriptor, rng: random.Random) -> None:
    if values and rng.random() < 0.25:
        del values[rng.choice(list(values))]
        return
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    for _ in range(rng.choice((1, 1, 2, 17, 2000))):
        values[_value(key, rng)] = _value(value, rng)


def _mutate_repeated(values: Any, field: FieldDescriptor, rng: random.Random) -> None:
    deed = rng.randrange(4)
    if deed == 0 and len(values):
        del values[rng.randrange(len(values)) :]
    elif deed == 1 and len(values):
        kept = list(values)
        values.extend(kept * rng.randint(1, max(1, 300 // len(kept))))
    else:
        for _ in range(rng.choice((1, 1, 2, 17, 300))):
            if field.message_type is not None:
                values.add()
            else:
                values.append(_value(field, rng))


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    return _MAKERS[field.type](rng)


def _whole(least: int, most: int) -> Callable[[random.Random], int]:
    def make(rng: random.Random) -> int:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice(_EDGES)
        return rng.choice((least, most, most - 1, most >> 1)) if kind < 0.85 else rng.randint(least, most)

    return make


_MAKERS: dict[int, Callable[[random.Random], Any]] = {
    FieldDescriptor.TYPE_INT32: _whole(-_INT32 - 1, _INT32),
    FieldDescriptor.TYPE_INT64: _whole(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: _whole(0, _UINT32),
    FieldDescriptor.TYPE_UINT64: _whole(0, _UINT64),
    FieldDescriptor.TYPE_ENUM: lambda rng: rng.choice((-1, 0, 1, 2, 3, 4, 5, 6, 77, _INT32)),
    FieldDescriptor.TYPE_BOOL: lambda rng: rng.random() < 0.5,
    FieldDescriptor.TYPE_FLOAT: lambda rng: rng.choice(_FLOATS),
    FieldDescriptor.TYPE_DOUBLE: lambda rng: rng.choice(_FLOATS),
    FieldDescriptor.TYPE_STRING: lambda rng: rng.choice(_TEXTS),
    FieldDescriptor.TYPE_BYTES: lambda rng: rng.randbytes(rng.choice((0, 1, 7, 64, 1000))),
}


def changed_bytes(raw: bytes, rng: random.Random) -> bytes:
    """`raw` with up to eight flipped bits, insertions, deletions, repetitions or cuts."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        deed = rng.randrange(5)
        if deed == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif deed == 1:
            data[at:at] = rng.randbytes(rng.randint(1, 12))
        elif deed == 2:
            del data[at : at + rng.randint(1, 12)]
        elif deed == 3:
            piece = data[at : at + rng.randint(1, 60)]
            data[at:at] = piece * rng.randint(1, 4)
        else:
            del data[at:]
    return bytes(data)
