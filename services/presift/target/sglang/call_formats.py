"""The formats in which answers call tools: a model family's own, or the JSON array of a forced call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

# SGLang's parsers handle at most one step of one call at a time.
_MAX_STEPS = 4096

# SGLang's ToolCallItem: tool_index, name (None for more arguments) and parameters (JSON text).
Item = Any


class CallFormat(Protocol):
    """A format of tool calls. `detector` is SGLang's parser of one answer; all may raise anything."""

    @property
    def detector(self) -> Any: ...

    def push(self, piece: str) -> tuple[str, Sequence[Item]]:
        """Other text, and calls or more arguments, as a new piece of the answer completes them."""

    def finish(self) -> tuple[str, Sequence[Item]]:
        """The same for what the parser held back."""

    def whole(self, text: str) -> Sequence[Item]:
        """The calls of a whole answer."""


class NativeFormat:
    """The format of the model's family. `new_parser` makes a `FunctionCallParser` of SGLang."""

    def __init__(self, new_parser: Callable[[], Any]) -> None:
        self._new_parser, self._parser = new_parser, new_parser()

    @property
    def detector(self) -> Any:
        return self._parser.detector

    def push(self, piece: str) -> tuple[str, Sequence[Item]]:
        harmony = getattr(self.detector, "harmony_parser", None)
        if harmony is not None and harmony.strategy is None and "<|" not in piece:
            # SGLang's parser delivers the text before the first call twice, and takes "analysis" in it for a mark.
            return piece, ()
        text, items = self._parser.parse_stream_chunk(piece)
        return text or "", items

    def finish(self) -> tuple[str, Sequence[Item]]:
        texts: list[str] = []
        found: list[Item] = []
        for _ in range(_MAX_STEPS):
            text, items = self.push("")
            texts.append(text)
            found.extend(items)
            if not text and not items:
                break
        text, items = self._parser.parse_stream_end()
        return "".join([*texts, text]), [*found, *items]

    def whole(self, text: str) -> Sequence[Item]:
        calls: Sequence[Item] = self._new_parser().parse_non_stream(text)[1]
        return calls


class JsonArrayFormat:
    """A JSON array of {"name", "parameters"}: what a grammar makes of a forced call without a native grammar."""

    def __init__(self, tools: Sequence[Any]) -> None:
        from sglang.srt.function_call.json_array_parser import JsonArrayParser  # noqa: PLC0415 - loaded by now

        self._tools, self.detector = list(tools), JsonArrayParser()

    def push(self, piece: str) -> tuple[str, Sequence[Item]]:
        # All text is part of the array; if it is not one after all, the stream delivers it at the end.
        return "", self.detector.parse_streaming_increment(piece, self._tools).calls

    def finish(self) -> tuple[str, Sequence[Item]]:
        return self.push("")

    def whole(self, text: str) -> Sequence[Item]:
        from sglang.srt.function_call.core_types import ToolCallItem  # noqa: PLC0415 - loaded by now

        calls = json.loads(text)
        return [
            ToolCallItem(
                tool_index=place,
                name=call["name"],
                parameters=json.dumps(call.get("parameters", {}), ensure_ascii=False),
            )
            for place, call in enumerate(calls if isinstance(calls, list) else [calls])
        ]
