"""The events of one request: a Decision, then for each answer Deltas and one Report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from presift.core.answer import TokenLogprob, ToolCallDelta
from presift.core.generation import FinishReason
from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.domain.request import Request
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

    @property
    def has_content(self) -> bool:
        """Whether it has text, reasoning or a tool call."""
        return bool(self.text or self.reasoning or self.tool_calls)


@dataclass(frozen=True, slots=True)
class Report:
    """The end of answer number `choice`: the stream's decision, the target's usage, and milliseconds since the
    request's arrival. `warnings` say in words what the caller may not expect."""

    decision: Decision
    usage: Usage
    ttft_ms: float
    total_ms: float
    choice: int = 0
    warnings: tuple[str, ...] = ()


Event = Decision | Delta | Report

# Memory of a character, at most; of a token's id, of a log probability and of one of its alternatives (measured).
_CHARACTER_BYTES, _ID_BYTES, _LOGPROB_BYTES, _TOP_BYTES = 4, 36, 160, 136


def held_bytes(event: Delta | Report) -> int:
    """The memory of an event's content, at most; joined events have the sum."""
    if isinstance(event, Report):
        return _bytes_of(event.usage.prompt_logprobs)
    held = _CHARACTER_BYTES * (len(event.text) + len(event.reasoning)) + _ID_BYTES * len(event.token_ids)
    if event.logprobs:  # not asked for by most callers; this runs for each token
        held += _bytes_of(event.logprobs)
    for call in event.tool_calls:
        held += _CHARACTER_BYTES * (len(call.name) + len(call.arguments))
    return held


def _bytes_of(logprobs: Sequence[TokenLogprob]) -> int:
    return sum(_LOGPROB_BYTES + _TOP_BYTES * len(each.top) for each in logprobs)


def length_warnings(request: Request, usage: Usage) -> tuple[str, ...]:
    """What to tell the caller about an answer that ended so."""
    if usage.finish_reason is not FinishReason.LENGTH:
        return ()
    stopped = f"the answer stopped at {usage.completion_tokens} tokens"
    uncut, default = request.uncut_max_new_tokens, "the default " if request.has_default_length else ""
    if uncut is not None:
        return (f"{stopped}: the context has no room for {default}max_new_tokens {uncut}",)
    most = request.sampling.max_new_tokens
    return (f"{stopped}: {most} is the default, as the request set none",) if request.has_default_length else ()


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
