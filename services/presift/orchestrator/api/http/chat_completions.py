"""The answers of /v1/chat/completions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from presift.core.answer import ToolCallDelta
from presift.orchestrator.api.http.answers import Answer, ToolCall
from presift.orchestrator.api.http.completions import Completion, View
from presift.orchestrator.api.http.logprobs import chat_logprobs
from presift.orchestrator.pipeline.events import Delta, Report
from presift.orchestrator.prompt.token_texts import TokenTexts


class ChatCompletion(Completion):
    """Messages of an assistant, with tool calls and reasoning."""

    whole_kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, view: View, texts: TokenTexts) -> None:
        super().__init__(view, texts)
        self._held: defaultdict[int, str] = defaultdict(str)

    def _content(self, number: int, answer: Answer) -> dict[str, Any]:
        text, reasoning = "".join(answer.text), "".join(answer.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if answer.tool_calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in answer.tool_calls]}
        return {"message": message, "logprobs": self._logprobs(answer.logprobs)}

    def _delta(self, number: int, delta: Delta, *, is_first: bool) -> dict[str, Any]:
        new: dict[str, Any] = {"role": "assistant", "content": ""} if is_first else {}
        if delta.text:
            new["content"] = delta.text
        if reasoning := self._reasoning(number, delta):
            new["reasoning_content"] = reasoning
        if delta.tool_calls:
            new["tool_calls"] = [_call_delta(call) for call in _joined(delta.tool_calls)]
        return {"delta": new, "logprobs": self._logprobs(delta.logprobs)}

    def _last_delta(self, number: int, report: Report) -> Delta:
        return Delta("", (), self._held.pop(number, ""), choice=report.choice)

    def _reasoning(self, number: int, delta: Delta) -> str:
        """With `stream_reasoning` false the reasoning comes in one piece, before the content."""
        if self.view.reasoning_in_chunks:
            return delta.reasoning
        if delta.text or delta.tool_calls or not delta.token_ids:
            return self._held.pop(number, "") + delta.reasoning
        self._held[number] += delta.reasoning
        return ""

    def _logprobs(self, logprobs: Any) -> dict[str, Any] | None:
        return chat_logprobs(logprobs, self.texts) if self.view.logprobs else None


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _joined(deltas: Iterable[ToolCallDelta]) -> Iterable[ToolCallDelta]:
    """One piece for each call."""
    joined: dict[int, ToolCallDelta] = {}
    for new in deltas:
        known = joined.get(new.index, ToolCallDelta(new.index))
        arguments = known.arguments + new.arguments
        joined[new.index] = ToolCallDelta(new.index, known.id or new.id, known.name or new.name, arguments)
    return joined.values()


def _call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    """The first piece of a call names it, the others have only its number."""
    if not delta.name:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}
