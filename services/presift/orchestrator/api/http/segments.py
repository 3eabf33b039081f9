"""An answer as a sequence of segments: reasoning, text and tool calls, each begun, extended and ended once.

The Responses API's output items and Anthropic's content blocks are both such segments.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from presift.core.answer import ToolCallDelta
from presift.orchestrator.pipeline.events import Delta


class SegmentKind(StrEnum):
    """What a segment holds."""

    REASONING = "reasoning"
    TEXT = "text"
    TOOL_CALL = "tool_call"


@dataclass(slots=True)
class Segment:
    """`index` is its place in the answer; a tool call has the `call_id` and `name` of the call, and its arguments are
    the text."""

    index: int
    kind: SegmentKind
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Begun:
    """A segment without text so far."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class Extended:
    """More text of a segment."""

    segment: Segment
    piece: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A segment that has all of its text."""

    segment: Segment


Change = Begun | Extended | Ended


class Segments:
    """The segments of one answer, from its deltas.

    White space before a text is held until there is more of it: models write empty lines before their tool calls.
    """

    def __init__(self) -> None:
        self.all: list[Segment] = []
        self._open: Segment | None = None
        self._calls: dict[int, Segment] = {}
        self._blank = ""

    @property
    def has_calls(self) -> bool:
        """Whether the answer calls a tool."""
        return bool(self._calls)

    def push(self, delta: Delta) -> Iterator[Change]:
        """What a delta changes. Use each change before the next: later ones change its segment too."""
        if delta.reasoning:
            yield from self._extend(SegmentKind.REASONING, delta.reasoning)
        if delta.text:
            yield from self._text(delta.text)
        for call in delta.tool_calls:
            yield from self._call(call)

    def finish(self, *, needs_text: bool = False) -> Iterator[Change]:
        """The end of the answer. One that is only white space is a text after all; with `needs_text` an answer that
        has no segment gets an empty text."""
        if not self.all and (self._blank or needs_text):
            yield from self._extend(SegmentKind.TEXT, self._blank)
        yield from self._end()

    def _text(self, text: str) -> Iterator[Change]:
        if self._open is None or self._open.kind is not SegmentKind.TEXT:
            text, self._blank = self._blank + text, ""
            if text.isspace():
                self._blank = text
                return
        yield from self._extend(SegmentKind.TEXT, text)

    def _call(self, call: ToolCallDelta) -> Iterator[Change]:
        segment = self._calls.get(call.index)
        if segment is None:
            segment = yield from self._begin(SegmentKind.TOOL_CALL, call)
            self._calls[call.index] = segment
        if call.arguments:
            segment.pieces.append(call.arguments)
            yield Extended(segment, call.arguments)

    def _extend(self, kind: SegmentKind, piece: str) -> Iterator[Change]:
        segment = self._open
        if segment is None or segment.kind is not kind:
            segment = yield from self._begin(kind)
        if piece:
            segment.pieces.append(piece)
            yield Extended(segment, piece)

    def _begin(self, kind: SegmentKind, call: ToolCallDelta | None = None) -> Generator[Change, None, Segment]:
        yield from self._end()
        segment = Segment(len(self.all), kind)
        if call is not None:
            segment.call_id, segment.name = call.id, call.name
        self.all.append(segment)
        self._open, self._blank = segment, ""
        yield Begun(segment)
        return segment

    def _end(self) -> Iterator[Change]:
        if self._open is not None:
            yield Ended(self._open)
        self._open = None
