"""Maps enums to the protobuf enums with the same member names."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from presift.core.errors import InvalidRequest

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

E = TypeVar("E", bound=Enum)


class WireEnum(Generic[E]):
    """The members of `kind` and their numbers in the protobuf enum `wire`.

    A protobuf name is the enum's prefix and the member's name. Raises ValueError for a member without one.
    """

    def __init__(self, kind: type[E], wire: EnumTypeWrapper) -> None:
        unspecified, *names = wire.keys()
        prefix = unspecified.removesuffix("UNSPECIFIED")
        self._names = ", ".join(names)
        self._numbers: dict[E, Any] = {member: wire.Value(prefix + member.name) for member in kind}
        self._members = {number: member for member, number in self._numbers.items()}

    def to_wire(self, member: E) -> Any:
        return self._numbers[member]

    def known(self, number: int) -> E | None:
        """None for UNSPECIFIED and for what only the peer's version knows."""
        return self._members.get(number)

    def from_wire(self, number: int, field: str) -> E | None:
        """None for UNSPECIFIED. Raises InvalidRequest, which names `field`, for an unknown number."""
        member = self.known(number)
        if member is None and number != 0:
            raise InvalidRequest(field, number, f"one of {self._names}")
        return member
