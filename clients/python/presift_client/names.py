"""Numbers of the wire as names."""

from __future__ import annotations

from typing import Any


def name_of(enum: Any, number: int, prefix: str) -> str:
    """ROUTE_SPEC_PC as "spec_pc"; the number where a newer service says what this client does not know."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else str(value.name).removeprefix(f"{prefix}_").lower()
