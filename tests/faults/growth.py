"""Inputs that grow: a piece of a valid one is repeated, as often as is said. Where growing costs more than it adds, the
reader does too much.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from .mutations import changed_bytes, slots

# The number of copies -> an input.
Growth = Callable[[int], bytes]

_NUMBER = b"#"
# Noncharacters, which stand for what is repeated.
_HOLES = ("\ufdd0", "\ufdd1")
_TOKENS = re.compile(rb"\w+|\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Repeated:
    """Of each step its text and then, many times, its piece; the `tail` at the end. Each # in a piece is the number of
    its copy."""

    steps: tuple[tuple[bytes, bytes], ...]
    tail: bytes = b""

    def __call__(self, copies: int) -> bytes:
        return b"".join(each for text, piece in self.steps for each in (text, _copies(piece, copies))) + self.tail


def repeated(text: bytes, piece: bytes, tail: bytes = b"") -> Repeated:
    """One step."""
    return Repeated(((text, piece),), tail)


def nested(text: bytes, piece: bytes, inner: bytes, close: bytes, tail: bytes = b"") -> Repeated:
    """`piece` and `close` around `inner`."""
    return Repeated(((text, piece), (inner, close)), tail)


def _copies(piece: bytes, copies: int) -> bytes:
    if _NUMBER not in piece:
        return piece * copies
    return b"".join(piece.replace(_NUMBER, b"%d" % number) for number in range(copies))


@dataclass(frozen=True, slots=True)
class GrownField:
    """A message in which the field `slot` (its number in `mutations.slots`) is longer."""

    message: Message = field(repr=False)
    slot: int
    name: str = ""

    def __call__(self, copies: int) -> bytes:
        copy = type(self.message)()
        copy.CopyFrom(self.message)
        holder, field = list(slots(copy))[self.slot]
        values = getattr(holder, field.name)
        if not field.is_repeated:
            setattr(holder, field.name, values * copies or (b"x" if isinstance(values, bytes) else "x") * copies)
        elif field.message_type is None:
            values.extend(_numbered(field, number) for number in range(copies))
        elif field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for number in range(copies):
                values[_numbered(key, number)] = _numbered(value, number)
        else:
            filled = list(values)[:1]
            for _ in range(copies):
                values.add().CopyFrom(filled[0]) if filled else values.add()
        return copy.SerializeToString()


def _numbered(field: Any, number: int) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        return f"text {number}" if field.type == field.TYPE_STRING else b"bytes %d" % number
    return field.enum_type.values[0].number if field.enum_type else number % 250


def grown_fields(message: Message) -> list[GrownField]:
    """One for each list, map, text and bytes in a message."""
    return [
        GrownField(message, at, f"{holder.DESCRIPTOR.name}.{field.name}")
        for at, (holder, field) in enumerate(slots(message))
        if field.is_repeated or field.cpp_type == field.CPPTYPE_STRING
    ]


def random_growth(seed: bytes | Message, words: Sequence[bytes], rng: random.Random) -> Growth:
    """A part of `seed` that is repeated, or one of `words` at some place in it."""
    if isinstance(seed, Message):
        return rng.choice(grown_fields(seed))
    if seed[:1] in b"{[" and rng.random() < 0.6 and (found := _grown_json(seed, rng)):
        return found
    if rng.random() < 0.3:
        seed = changed_bytes(seed, rng)
    tokens = _TOKENS.findall(seed)
    start, end = sorted(rng.randrange(len(tokens) + 1) for _ in range(2))
    if words and rng.random() < 0.4:
        piece, end = rng.choice(words), start
    else:
        piece = b"".join(tokens[start:end]) or b" "
    if rng.random() < 0.5:
        piece = re.sub(rb"\d+", _NUMBER, piece)
    steps = [(b"".join(tokens[:start]), piece)]
    if words and rng.random() < 0.2:
        steps.append((b"", rng.choice(words)))
    return Repeated(tuple(steps), b"".join(tokens[end:]))


def _grown_json(seed: bytes, rng: random.Random) -> Repeated | None:
    """One or two lists or objects of a JSON text have many elements, numbered or not."""
    try:
        value = json.loads(seed)
    except ValueError:
        return None
    holes, pieces = _HOLES[: rng.randint(1, 2)], dict[str, tuple[bytes, bytes]]()
    for hole in holes:
        if not (found := list(_walk(value, ()))):
            break  # all of it is repeated already
        path, container = rng.choice(found)
        value = _replaced(value, path, hole)
        pieces[hole] = _elements(container, rng)
    texts = re.split(rb'"\\ufdd(\d)"', json.dumps(value).encode())
    steps, closing = list[tuple[bytes, bytes]](), b""
    for text, digit in zip(texts[:-1:2], texts[1::2], strict=True):
        piece, last = pieces[_HOLES[int(digit)]]
        steps.append((closing + text + last[:1], piece))
        closing = last[1:]
    return Repeated(tuple(steps), closing + texts[-1])


def _elements(container: Any, rng: random.Random) -> tuple[bytes, bytes]:
    """A piece that is repeated in a list or object, and what is before (one byte) and after all of them."""
    if isinstance(container, dict):
        element = json.dumps(rng.choice(list(container.values()) or [0])).encode()
        return b'"key #":%s,' % element, b'{"last":%s}' % element
    element = json.dumps(rng.choice(container or [0]))
    piece = _with_number(element) if rng.random() < 0.5 else element
    return piece.encode() + b",", b"[" + element.encode() + b"]"


def _walk(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, list | dict):
        yield path, value
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _walk(inner, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], by)
    return copy


def _with_number(element: str) -> str:
    """The last text or number of a JSON value gets the number of its copy."""
    found = list(re.finditer(r'[^"\\]"(?!:)|\d+', element))
    if not found:
        return element
    at, end = found[-1].span()
    return f"{element[:at]}#{element[end:]}" if element[at].isdigit() else f"{element[: at + 1]}#{element[at + 1 :]}"


def mutated_bytes(seed: bytes | Message, rng: random.Random) -> bytes:
    """`seed` with some of its bytes changed."""
    return changed_bytes(seed.SerializeToString() if isinstance(seed, Message) else seed, rng)
