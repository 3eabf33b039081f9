"""Numbers that a draft or target measured. One out of range is dropped: it would spoil what is learned and recorded."""

from __future__ import annotations

# Less is below the resolution of clocks, and a division by it overflows; more than a day is no time of a request.
LEAST_MS, MOST_MS = 1e-3, 86_400_000.0


def milliseconds(value: float) -> float:
    """The time, or 0.0, which is unknown."""
    return value if LEAST_MS <= value <= MOST_MS else 0.0


def tokens(value: float, most: int) -> float:
    """A mean number of tokens, or 0.0, which is unknown."""
    return value if 0.0 <= value <= most else 0.0


def share(value: float) -> float | None:
    """A share in 0..1, or None, which is unknown."""
    return value if 0.0 <= value <= 1.0 else None
