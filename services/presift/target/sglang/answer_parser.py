"""Separates one answer into content, reasoning and tool calls, with SGLang's parsers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

from presift.core.answer import AnswerFormat, ParsedText, ToolCallDelta
from presift.target.sglang.call_formats import JsonArrayFormat, NativeFormat
from presift.target.sglang.text_pieces import TextPieces
from presift.target.sglang.tool_call_stream import ToolCallStream
from presift.target.sglang.tools import choice_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ParserNames:
    """SGLang's names of the parsers; empty for none."""

    tool_calls: str = ""
    reasoning: str = ""


NO_NAMES = ParserNames()


class AnswerParser:
    """Reads the text of one answer as it is generated.

    `is_thinking`: the answer begins with reasoning. `earlier_calls`: the number of calls in the prompt, for the formats
    that number their calls. `tools` and `variables`: those of `wanted` as SGLang's values.
    """

    def __init__(
        self,
        wanted: AnswerFormat,
        names: ParserNames,
        tokenizer: Any = None,
        *,
        tools: Sequence[Any],
        variables: Mapping[str, Any] = MappingProxyType({}),
        is_thinking: bool = False,
        earlier_calls: int = 0,
    ) -> None:
        self._pieces = TextPieces()
        self._calls = (
            _call_stream(wanted, tools, names.tool_calls, tokenizer, earlier_calls) if wanted.tools_json else None
        )
        self._reasoning = (
            _ReasoningStream(names.reasoning, tokenizer, variables, is_thinking, feeds_calls=self._calls is not None)
            if wanted.separate_reasoning and names.reasoning
            else None
        )

    @property
    def has_calls(self) -> bool:
        """Whether the answer has called a tool so far."""
        return self._calls is not None and self._calls.has_calls

    def push(self, text: str) -> ParsedText:
        """What new text adds."""
        if self._calls is None and self._reasoning is None:
            return ParsedText(text)
        return joined(self._push(piece) for piece in self._pieces.push(text))

    def finish(self) -> ParsedText:
        """What was held back. Call it once, at the end."""
        held = [self._push(piece) for piece in self._pieces.finish()]
        reasoning, content = ("", "") if self._reasoning is None else self._reasoning.finish()
        held.append(replace(self._separate_calls(content), reasoning=reasoning))
        if self._calls is not None:
            held.append(self._calls.finish())
        return joined(held)

    def _push(self, piece: str) -> ParsedText:
        reasoning, content = ("", piece) if self._reasoning is None else self._reasoning.push(piece)
        return replace(self._separate_calls(content), reasoning=reasoning)

    def _separate_calls(self, content: str) -> ParsedText:
        return self._calls.push(content) if self._calls is not None and content else ParsedText(content)


class _ReasoningStream:
    """SGLang's parser of reasoning. After an exception all text is content.

    At the end the whole answer is parsed, and what the streaming parser lost of it is delivered.
    """

    def __init__(
        self, name: str, tokenizer: Any, variables: Mapping[str, Any], is_thinking: bool, *, feeds_calls: bool
    ) -> None:
        from sglang.srt.parser.reasoning_parser import ReasoningParser  # noqa: PLC0415 - loaded by now

        # The variables choose the marks of some models.
        request: Any = SimpleNamespace(chat_template_kwargs=dict(variables))
        options = {"tokenizer": tokenizer, "tool_call_parser_active": feeds_calls}
        self._new_parser: Callable[[], Any] = lambda: ReasoningParser(
            name, force_reasoning=is_thinking, request=request, **options
        )
        self._parser = self._new_parser()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._has_failed = False

    def push(self, piece: str) -> tuple[str, str]:
        """(reasoning, content)."""
        self._text.append(piece)
        return self._guarded(lambda: self._parser.parse_stream_chunk(piece), piece)

    def finish(self) -> tuple[str, str]:
        """(reasoning, content) that the streaming parser held back or lost."""
        reasoning, content = self._guarded(self._parser.parse_stream_end, "")
        lost_reasoning, lost_content = ("", "") if self._has_failed else self._lost()
        return reasoning + lost_reasoning, content + lost_content

    def _guarded(self, parse: Callable[[], tuple[str | None, str | None]], piece: str) -> tuple[str, str]:
        if self._has_failed:
            return "", piece
        held = getattr(self._parser.detector, "_buffer", "")
        try:
            reasoning, content = parse()
        except Exception as error:
            log.warning("the parser of reasoning failed: %s", type(error).__name__)
            self._has_failed = True
            return "", held + piece
        self._reasoning.append(reasoning or "")
        self._content.append(content or "")
        return reasoning or "", content or ""

    def _lost(self) -> tuple[str, str]:
        """(reasoning, content) of the whole answer beyond what was delivered; nothing if they do not begin alike."""
        text, parser = "".join(self._text), self._new_parser()
        try:
            whole = parser.parse_non_stream(text)
        except Exception:
            return "", ""
        harmony = getattr(parser.detector, "parser", None)
        if harmony is not None and harmony.strategy is None:
            # SGLang waits for the first mark. There is none if the prompt has already begun the answer's content.
            whole = "", text
        sent = "".join(self._reasoning), "".join(self._content)
        if not all((new or "").startswith(old) for new, old in zip(whole, sent, strict=True)):
            return "", ""
        reasoning, content = ((new or "")[len(old) :] for new, old in zip(whole, sent, strict=True))
        return reasoning, content


def _call_stream(
    wanted: AnswerFormat, tools: Sequence[Any], name: str, tokenizer: Any, earlier_calls: int
) -> ToolCallStream:
    from sglang.srt.function_call.function_call_parser import FunctionCallParser  # noqa: PLC0415 - loaded by now

    # For `auto`, SGLang's own server names no choice either.
    forced = choice_of(wanted) if wanted.forces_call else None

    def new_parser() -> Any:
        return FunctionCallParser(tools, name, tokenizer=tokenizer, tool_choice=forced)

    is_native = bool(name) and (not wanted.forces_call or new_parser().owns_tool_format())
    form = NativeFormat(new_parser) if is_native else JsonArrayFormat(tools)
    return ToolCallStream(form, _ids(name, earlier_calls))


def _ids(name: str, earlier_calls: int) -> Callable[[str, int], str]:
    """The ids of calls. Kimi's models read the number of the call in the conversation from them."""
    if name == "kimi_k2":
        return lambda function, place: f"functions.{function}:{earlier_calls + place}"
    if name == "kimi_k3":
        return lambda function, place: f"{function}:{earlier_calls + place}"
    return lambda function, place: f"call_{uuid.uuid4().hex[:24]}"


def joined(parts: Iterable[ParsedText]) -> ParsedText:
    """All parts in one, with one delta for each run of a call's deltas."""
    every = list(parts)
    calls: list[ToolCallDelta] = []
    for delta in (each for part in every for each in part.tool_calls):
        if calls and calls[-1].index == delta.index and not delta.id:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + delta.arguments)
        else:
            calls.append(delta)
    return ParsedText(_text(every, "content"), _text(every, "reasoning"), tuple(calls))


def _text(parts: Sequence[ParsedText], name: str) -> str:
    return "".join(getattr(part, name) for part in parts)
