"""The deadline of one request, and how it is split: every stage gets what is left without what the next ones need."""

from __future__ import annotations

import time
from dataclasses import dataclass

from presift.core.errors import DeadlineExceeded

# Of what is left, for the draft where nothing is known of the target's speed yet.
UNKNOWN_SHARE = 0.5
# Predictions are not exact, and least of all on a busy host, where the draft is late as well.
_MARGIN = 1.5
# A caller's own clock runs ahead of ours by the way of the request, and it may hang up first.
_SAME_MOMENT_S = 0.05
# The draft gets at least this much, for a compressed prompt may be the only one that can be read in time; and at most
# that much, whatever is predicted.
_LEAST_SHARE, _MOST_SHARE = 0.25, 0.75


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at_s` on the clock of `time.monotonic`, None for none."""

    at_s: float | None = None

    @classmethod
    def within(cls, left_s: float | None) -> Deadline:
        """That many seconds from now."""
        return cls(None if left_s is None else time.monotonic() + left_s)

    def left_s(self) -> float | None:
        """Seconds, > 0. Raises DeadlineExceeded: nothing is to go on downstream after it."""
        if self.at_s is None:
            return None
        left_s = self.at_s - time.monotonic()
        if left_s <= 0.0:
            raise DeadlineExceeded("the deadline passed")
        return left_s

    @property
    def is_here(self) -> bool:
        """Whether who leaves now leaves because of it."""
        return self.at_s is not None and self.at_s - time.monotonic() <= _SAME_MOMENT_S


def draft_share_s(left_s: float, target_s: float | None) -> float:
    """Seconds for the draft: without those that the target is predicted to need then for reading everything and for
    answering (None where that is not known).
    """
    if target_s is None:
        return UNKNOWN_SHARE * left_s
    return min(_MOST_SHARE * left_s, max(_LEAST_SHARE * left_s, left_s - _MARGIN * target_s))
