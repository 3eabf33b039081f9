"""The events of one request: a Decision, then for each answer Deltas and one Report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from presift.core.answer import TokenLogprob, ToolCallDelta
from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.routing.decision import Decision


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in answer number `choice`. `text` may be empty while a character or a stop string is incomplete.

    `reasoning` and `tool_calls` are separated from the text by the target's parsers; `logprobs` has one item for each
    of `token_ids`, if requested.
    """

    text: str
    token_ids: tuple[int, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0

    def __bool__(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.text or self.reasoning or self.tool_calls)


@dataclass(frozen=True, slots=True)
class Report:
    """The end of answer number `choice`: the stream's decision, the target's usage, and milliseconds since the
    request's arrival."""

    decision: Decision
    usage: Usage
    ttft_ms: float
    total_ms: float
    choice: int = 0


Event = Decision | Delta | Report


def joined(events: Sequence[Delta | Report]) -> Iterator[Delta | Report]:
    """The same answers in at most two events each: everything so far, and the end."""
    for choice in sorted({event.choice for event in events}):
        deltas = [event for event in events if isinstance(event, Delta) and event.choice == choice]
        if deltas:
            yield _joined(deltas)
        yield from (event for event in events if isinstance(event, Report) and event.choice == choice)


def _joined(deltas: Sequence[Delta]) -> Delta:
    chained = chain.from_iterable
    return Delta(
        "".join(each.text for each in deltas),
        tuple(chained(each.token_ids for each in deltas)),
        "".join(each.reasoning for each in deltas),
        tuple(chained(each.tool_calls for each in deltas)),
        tuple(chained(each.logprobs for each in deltas)),
        deltas[0].choice,
    )
