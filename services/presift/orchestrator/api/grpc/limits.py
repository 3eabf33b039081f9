"""The limits of a Generate and an Explain message, checked on the message before anything is built from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from presift.core.limits import SAMPLING, Limit
from presift.orchestrator.domain.limits import CHAT, SPANS, TEXT, TOKEN_IDS


def _measured_on(part: Callable[[Any], Any], table: Iterable[Limit]) -> Iterator[Limit]:
    """The rows of `table`, measured on `part` of the message."""

    def measured(limit: Limit) -> Limit:
        return replace(limit, measure=lambda message: limit.measure(part(message)))

    return map(measured, table)


EXPLAIN: tuple[Limit, ...] = (
    *_measured_on(lambda message: message.prompt.token_ids.ids, TOKEN_IDS),
    *_measured_on(lambda message: message.prompt.protected_spans, SPANS),
    *_measured_on(lambda message: message.prompt.text, TEXT),
    *_measured_on(lambda message: message.prompt.chat, CHAT),
)
GENERATE: tuple[Limit, ...] = (*EXPLAIN, *SAMPLING)
