"""The pieces of answers as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from presift.v1 import orchestrator_pb2, target_pb2
from presift_client.wire import plain


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, number `index` of the answer. In a delta with an `id` or `name` a new call begins; in others,
    `arguments` are the next piece. The arguments of a whole call are JSON."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability, None for the first token of a prompt.

    `top`: the most likely tokens at its place with their log probabilities, the most likely first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """The new part of answer number `choice`. `text` is empty while a character is incomplete; `reasoning` and
    `tool_calls` are not part of it. `logprobs` has one item for each of `token_ids`, if requested."""

    text: str
    token_ids: tuple[int, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0


def delta_of(delta: orchestrator_pb2.TextDelta) -> Delta:
    return Delta(
        delta.text,
        tuple(delta.token_ids),
        delta.reasoning,
        tuple(plain(ToolCall, call) for call in delta.tool_calls),
        logprobs_of(delta.logprobs),
        delta.choice,
    )


def logprobs_of(logprobs: Iterable[target_pb2.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        plain(TokenLogprob, each, top=tuple((other.token_id, other.logprob) for other in each.top)) for each in logprobs
    )


def whole_calls(pieces: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    """The calls of an answer, put together from the pieces of its deltas."""
    calls: dict[int, ToolCall] = {}
    for piece in pieces:
        known = calls.get(piece.index, ToolCall(piece.index, "", "", ""))
        arguments = known.arguments + piece.arguments
        calls[piece.index] = ToolCall(piece.index, known.id or piece.id, known.name or piece.name, arguments)
    return tuple(calls[index] for index in sorted(calls))
