"""The calls of tools in an answer that is still being generated: what SGLang's parsers find, and what they miss."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from presift.core.answer import ParsedText, ToolCallDelta
from presift.target.sglang.call_formats import CallFormat, Item
from presift.target.sglang.text_pieces import TextPieces

log = logging.getLogger(__name__)

# SGLang's parsers read the arguments again from their start with each piece. Once they are long, a piece is this share.
_ARGUMENTS_SHARE = 200


@dataclass(slots=True)
class _Call:
    name: str
    arguments: str


class ToolCallStream:
    """Separates tool calls from an answer. `call_id` makes the id of a call from its name and its number.

    At the end the streamed calls are compared with those of the whole answer, and completed. What belongs to no call
    becomes content: nothing of the answer is lost, and nothing that a parser raises ends it.
    """

    def __init__(self, form: CallFormat, call_id: Callable[[str, int], str]) -> None:
        self._form, self._call_id = form, call_id
        begin = str(getattr(form.detector, "bot_token", "")).strip()
        # Text arrives in pieces, so the first piece of the marker already means that a call begins.
        self._begin = (TextPieces().push(begin) or [begin])[0] if begin else None
        self._text: list[str] = []
        # Text that is neither content nor part of a call so far.
        self._held = ""
        # Whether a call has begun and nothing of it was found yet.
        self._has_begun = False
        # What the parser takes for content after a call: it may be a call that only the whole answer shows.
        self._after = ""
        self._batch = ""
        self._calls: list[_Call] = []
        # SGLang's index of a call, which may start again at 0 -> its number in the answer.
        self._places: dict[int, int] = {}
        self._has_failed = False

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    def push(self, piece: str) -> ParsedText:
        """What a new piece of the answer adds."""
        self._text.append(piece)
        self._batch += piece
        if self._can_wait(piece):
            return ParsedText()
        piece, self._batch = self._batch, ""
        malformed = self._begin_call() if piece == self._begin else ""
        self._held += piece
        content, items = self._guarded(lambda: self._form.push(piece))
        return ParsedText(malformed + self._content(content, items), "", self._deltas(items))

    def finish(self) -> ParsedText:
        """What was held back, and what the streaming parser missed."""
        batch, self._batch = self._batch, ""
        pushed, first = self._guarded(lambda: self._form.push(batch))
        flushed, second = self._guarded(self._form.finish)
        deltas = [*self._deltas(first), *self._deltas(second)]
        streamed = len(self._calls)
        deltas += [*self._missing(self._whole()), *self._unstreamed()]
        if len(self._calls) > streamed:
            content = ""
        elif deltas or (self.has_calls and not self._has_begun):
            content = self._after + pushed + flushed
        else:
            content = self._after + self._held + batch
        return ParsedText(content, "", tuple(deltas))

    def _can_wait(self, piece: str) -> bool:
        """Whether a piece of long arguments can be read with the next ones. The end of a call must stand alone."""
        is_inside = bool(self._calls) and getattr(self._form.detector, "current_tool_name_sent", False)
        is_plain = piece.isspace() or piece.isalnum()
        return is_inside and is_plain and len(self._batch) < len(self._calls[-1].arguments) // _ARGUMENTS_SHARE

    def _begin_call(self) -> str:
        """Note that a call begins. Returns the one before if it was none after all."""
        malformed = ""
        if self._has_begun:
            malformed, self._after, self._held = self._after + self._held, "", ""
        self._has_begun = True
        return malformed

    def _content(self, content: str, items: Sequence[Item]) -> str:
        """What of the text so far is content, if the parser found `content` and `items`."""
        if items:
            content, self._after = self._after + content, ""
            self._held, self._has_begun = "", False
            return content
        if self._has_begun:
            return ""
        if self._calls:
            # The parser removes the marks around calls.
            self._after, self._held = self._after + content, ""
            return ""
        # It removes some of them from other text, too.
        end = _end_of(content, self._held)
        content, self._held = self._held[:end], self._held[end:]
        return content

    def _guarded(self, parse: Callable[[], tuple[str, Sequence[Item]]]) -> tuple[str, Sequence[Item]]:
        if not self._has_failed:
            try:
                return parse()
            except Exception as error:
                log.warning("the parser of tool calls failed: %s", type(error).__name__)
                # What follows stays together until the end, where the whole answer is parsed.
                self._has_failed = self._has_begun = True
        return "", ()

    def _whole(self) -> Sequence[Item]:
        try:
            return self._form.whole("".join(self._text))
        except Exception:
            return ()

    def _deltas(self, items: Sequence[Item]) -> tuple[ToolCallDelta, ...]:
        return tuple(delta for item in items if (delta := self._delta(item)) is not None)

    def _delta(self, item: Item) -> ToolCallDelta | None:
        if item.name and not self._continues(item):
            self._places[item.tool_index] = len(self._calls)
            return self._new_call(item.name, item.parameters)
        place = self._places.get(item.tool_index, len(self._calls) - 1)
        return self._more(place, item.parameters) if place >= 0 else None

    def _continues(self, item: Item) -> bool:
        """Whether an item with a name only adds arguments to the last call."""
        last = len(self._calls) - 1
        if last < 0 or self._places.get(item.tool_index) != last:
            return False
        return self._calls[last].name == item.name and not _is_json(self._calls[last].arguments)

    def _new_call(self, name: str, arguments: str) -> ToolCallDelta:
        place = len(self._calls)
        self._calls.append(_Call(name, arguments))
        return ToolCallDelta(place, self._call_id(name, place), name, arguments)

    def _more(self, place: int, arguments: str) -> ToolCallDelta | None:
        self._calls[place].arguments += arguments
        return ToolCallDelta(place, arguments=arguments) if arguments else None

    def _missing(self, calls: Sequence[Item]) -> list[ToolCallDelta]:
        """What the `calls` of the whole answer have beyond the streamed ones, if they begin alike."""
        known = list(self._calls)
        if [each.name for each in calls[: len(known)]] != [each.name for each in known]:
            return []
        deltas = [self._more(place, _rest(call.arguments, calls[place].parameters)) for place, call in enumerate(known)]
        return [
            *(each for each in deltas if each is not None),
            *(self._new_call(each.name, each.parameters) for each in calls[len(known) :]),
        ]

    def _unstreamed(self) -> list[ToolCallDelta]:
        """The arguments that SGLang's parser knows of the last call and has not streamed."""
        known, last = getattr(self._form.detector, "prev_tool_call_arr", None), len(self._calls) - 1
        if not known or last < 0 or known[-1].get("name", self._calls[last].name) != self._calls[last].name:
            return []
        arguments = known[-1].get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        delta = self._more(last, _rest(self._calls[last].arguments, text))
        return [] if delta is None else [delta]


def _rest(sent: str, arguments: str) -> str:
    """What completes the `arguments` of a call of which `sent` is known."""
    return "" if _is_json(sent) or not arguments.startswith(sent) else arguments[len(sent) :]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _end_of(content: str, text: str) -> int:
    """Where `content` ends in `text`, of which it may lack some characters."""
    if text.startswith(content):
        return len(content)
    place = 0
    for character in content:
        place = text.find(character, place) + 1
        if not place:
            return len(text)
    return place
