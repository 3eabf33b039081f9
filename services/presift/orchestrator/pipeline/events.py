"""The events of one answer: a Decision, then Deltas, then one Report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.routing.decision import Decision


@dataclass(frozen=True, slots=True)
class Delta:
    """New text and tokens. `text` may be empty while a character or a stop string is incomplete."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a stream: its decision, the target's usage, and milliseconds since the request's arrival."""

    decision: Decision
    usage: Usage
    ttft_ms: float
    total_ms: float


Event = Decision | Delta | Report


def joined(events: Sequence[Delta | Report]) -> Iterator[Delta | Report]:
    """The same answer in at most two events: everything so far, and its end."""
    deltas = [event for event in events if isinstance(event, Delta)]
    if deltas:
        text, token_ids = "".join(each.text for each in deltas), chain.from_iterable(each.token_ids for each in deltas)
        yield Delta(text, tuple(token_ids))
    yield from (event for event in events if isinstance(event, Report))
