"""Between protobuf messages and plain values: short enum names, and dataclasses from messages."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Kind = TypeVar("Kind", bound=DataclassInstance)


@cache
def _names(enum: EnumDescriptor) -> dict[int, str]:
    """Short names by number: 3 is "spec_pc" for ROUTE_SPEC_PC."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values}


def name_of(enum: EnumDescriptor, number: int) -> str:
    """The enum value's short name; its number as text if a newer service sends a value that this client lacks."""
    return _names(enum).get(number, str(number))


def number_of(option: str, name: str, enum: EnumDescriptor) -> int:
    """The enum value with this short name. Raises ValueError, listing the known names."""
    numbers = {known: number for number, known in _names(enum).items() if number}
    if name not in numbers:
        raise ValueError(f"{option} is {name!r}; it must be one of {', '.join(numbers)}")
    return numbers[name]


def plain(kind: type[Kind], message: Message, **others: Any) -> Kind:
    """A `kind` from the message's fields of the same names: None for what is unset, short names for enums.

    `others` are the fields that the message has in another form.
    """
    sent = message.DESCRIPTOR.fields_by_name
    names = (field.name for field in fields(kind) if field.name not in others)
    return kind(**{name: _value(message, sent[name]) for name in names}, **others)


def _value(message: Message, field: FieldDescriptor) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    return value if field.enum_type is None else name_of(field.enum_type, value)
