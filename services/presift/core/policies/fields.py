"""Field types that policies share, and their checks."""

from __future__ import annotations

from enum import StrEnum

from presift.core.errors import InvalidRequest


class Pool(StrEnum):
    """How importance is smoothed along the sequence."""

    NONE = "none"
    MAX = "max"
    MEAN = "mean"


class Reduction(StrEnum):
    """How rows, heads and layers become one number per token. SUM is what the authors call "mean"."""

    MAX = "max"
    SUM = "sum"


class KvSelection(StrEnum):
    """Whose queries choose the KV pairs."""

    TARGET_LOOKAHEAD = "target_lookahead"
    DRAFT_MASK = "draft_mask"


class Heads(StrEnum):
    """Which of the draft's attention heads score tokens.

    ALL: every head from `start_layer` on. CALIBRATED: the heads of the draft's head profile, reduced as it
    says.
    """

    ALL = "all"
    CALIBRATED = "calibrated"


def at_least(field: str, value: int, least: int) -> None:
    """Raise InvalidRequest if `value` is not an integer or below `least`."""
    if not isinstance(value, int) or value < least:
        raise InvalidRequest(field, value, f">= {least}")


def one_of(field: str, value: StrEnum, kind: type[StrEnum]) -> None:
    """Raise InvalidRequest if `value` is not a member of `kind`, so that no unknown value is taken for a known one."""
    if not isinstance(value, kind):
        raise InvalidRequest(field, value, f"one of {', '.join(kind)}")
