"""Limits on the content of a message: the numbers that services share, and how a message is checked.

Each service has a table of limits (`limits.py` in its folder); the protos' comments have the same numbers. They are
checked on the message itself, before any work, so that a refusal costs nothing. Limits of a model (vocabulary, context)
are checked where the model is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from presift.core.errors import InvalidRequest

MAX_PROMPT_TOKENS = 1_048_576
# Eight characters per token: no tokenizer makes fewer tokens of ordinary text.
MAX_PROMPT_CHARACTERS = 8_388_608
MAX_SPANS = 16_384
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_SALT_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 1024
MAX_GRAMMAR_CHARACTERS = 1_048_576
# In all definitions of one request together.
MAX_TOOLS = 512
MAX_TOOLS_CHARACTERS = 1_048_576
MAX_TEMPLATE_KWARGS_CHARACTERS = 65_536
# The draft generates them one by one, before the target's first token.
MAX_LOOKAHEAD_TOKENS = 256
# In memory a bit of a KV mask takes a byte.
MAX_KV_MASK_BYTES = 16_777_216


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` of `unit` in `field`; `measure` counts them in a message."""

    field: str
    most: int
    unit: str
    measure: Callable[[Any], int]


def check_limits(message: Any, table: Iterable[Limit]) -> None:
    """Raise InvalidRequest for the first row of the table that `message` exceeds."""
    for limit in table:
        if (found := limit.measure(message)) > limit.most:
            raise InvalidRequest(limit.field, f"{found} {limit.unit}", f"at most {limit.most}")


# For every message with a field `sampling` (presift.v1.Sampling).
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
    Limit("sampling.logit_bias", MAX_LOGIT_BIASES, "token ids", lambda message: len(message.sampling.logit_bias)),
)
