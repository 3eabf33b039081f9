"""How much of anything one message may hold: the numbers that services share, and how a message is held against them.

Each service has one table of these (`limits.py` in its folder; the protos' comments say the same numbers). They are
counted on the message itself, before anything is made of it, so that what is refused has cost nothing. What depends on
a model (vocabulary, context) is checked where the model is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from presift.core.errors import InvalidRequest

MAX_PROMPT_TOKENS = 1_048_576
# Eight times as many: no tokenizer makes fewer tokens of ordinary text.
MAX_PROMPT_CHARACTERS = 8_388_608
MAX_SPANS = 16_384
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 256
# The draft generates them one by one before the target's first token.
MAX_LOOKAHEAD_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` of `unit` in `field`, as `measure` counts them in a message."""

    field: str
    most: int
    unit: str
    measure: Callable[[Any], int]


def check_limits(message: Any, table: Iterable[Limit]) -> None:
    """Raise InvalidRequest for the first row of the table that `message` exceeds."""
    for limit in table:
        if (found := limit.measure(message)) > limit.most:
            raise InvalidRequest(limit.field, f"{found} {limit.unit}", f"at most {limit.most}")


# Of each message that has a `sampling` (presift.v1.Sampling).
SAMPLING: tuple[Limit, ...] = (
    Limit("sampling.stop", MAX_STOP_STRINGS, "strings", lambda message: len(message.sampling.stop)),
    Limit(
        "sampling.stop",
        MAX_STOP_CHARACTERS,
        "characters",
        lambda message: max(map(len, message.sampling.stop), default=0),
    ),
    Limit(
        "sampling.stop_token_ids", MAX_STOP_TOKEN_IDS, "token ids", lambda message: len(message.sampling.stop_token_ids)
    ),
)
