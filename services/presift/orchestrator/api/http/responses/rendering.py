"""An answer as a response object with output items, whole or as the events of a stream. Knows no HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from presift.core.generation import FinishReason
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.errors import ErrorResponse
from presift.orchestrator.api.http.presift_json import presift_of_decision, presift_of_explanation
from presift.orchestrator.api.http.responses.schema import ResponsesBody
from presift.orchestrator.api.http.segments import Begun, Change, Ended, Extended, Segment, SegmentKind
from presift.orchestrator.api.http.translated import SingleAnswer
from presift.orchestrator.api.http.wire_format import TypedEvents
from presift.orchestrator.pipeline.events import Delta, Event, Report
from presift.orchestrator.planning.explain import Explanation
from presift.orchestrator.routing.decision import Decision

_PREFIXES = {SegmentKind.REASONING: "rs_", SegmentKind.TEXT: "msg_", SegmentKind.TOOL_CALL: "fc_"}
_PIECE = {
    SegmentKind.REASONING: "response.reasoning_text",
    SegmentKind.TEXT: "response.output_text",
    SegmentKind.TOOL_CALL: "response.function_call_arguments",
}
_IN_PROGRESS, _COMPLETED, _INCOMPLETE = "in_progress", "completed", "incomplete"


class ResponseRenderer(SingleAnswer):
    """One response. The parameters of `body` are echoed."""

    def __init__(self, view: View, body: ResponsesBody) -> None:
        super().__init__(view)
        self.id = f"resp_{secrets.token_hex(16)}"
        self._body = body
        self._created = int(time.time())
        self._ids: list[str] = []
        self._number = 0

    @property
    def wire_format(self) -> ResponseFormat:
        return ResponseFormat(self)

    def whole(self) -> dict[str, Any]:
        self.finish(needs_text=True)
        return self._ended()

    def chunks(self, prompt: int, event: Event) -> list[dict[str, Any]]:
        self.answers.add(prompt, event)
        if isinstance(event, Decision):
            return []  # nothing before the first token: an earlier error has its own status
        begun = list(self._begin())
        if isinstance(event, Delta):
            changes, status = self.segments.push(event), _COMPLETED
        else:
            changes, status = self.segments.finish(needs_text=True), _status(event)
        events = [each for change in changes for each in self._events(change, status)]
        if not isinstance(event, Delta):
            events.append(self._event(f"response.{status}", response=self._ended()))
        return begun + events

    def decision_chunk(self, decision: Decision) -> dict[str, Any]:
        presift = {"presift": presift_of_decision(decision)}
        return self._event("response.created", response=self._object(_IN_PROGRESS, ()) | presift)

    def explained(self, explanation: Explanation) -> dict[str, Any]:
        """No answer, but what would be kept for one."""
        usage = _usage(explanation.decision.prompt_tokens, 0, 0, 0)
        return self._object(_COMPLETED, ()) | {
            "usage": usage,
            "presift": presift_of_explanation(explanation, self.view.ignored),
        }

    def failed(self, response: ErrorResponse) -> Iterator[dict[str, Any]]:
        """The end of a stream that has failed."""
        error = response.body["error"]
        yield self._event("error", code=error["code"], message=error["message"], param=error["param"])
        code = "rate_limit_exceeded" if error["type"] == "rate_limit_error" else "server_error"
        items = [self._item(segment, _INCOMPLETE) for segment in self.segments.all]
        failed = self._object("failed", items) | {"error": {"code": code, "message": error["message"]}}
        yield self._event("response.failed", response=failed)

    def _begin(self) -> Iterator[dict[str, Any]]:
        for at, kind in enumerate(("response.created", "response.in_progress")):
            if self._number == at:
                yield self._event(kind, response=self._object(_IN_PROGRESS, ()))

    def _ended(self) -> dict[str, Any]:
        report, items = self.report, self.segments.all
        status, usage = _status(report), report.usage
        # What came before the last item was complete.
        output = [self._item(each, status if each is items[-1] else _COMPLETED) for each in items]
        return self._object(status, output) | {
            "incomplete_details": {"reason": "max_output_tokens"} if status == _INCOMPLETE else None,
            "completed_at": int(time.time()),
            "usage": _usage(
                self.answers.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.reasoning_tokens
            ),
            "presift": self.presift(),
        }

    def _events(self, change: Change, status: str) -> Iterator[dict[str, Any]]:
        segment = change.segment
        if isinstance(change, Begun):
            self._ids.append(_PREFIXES[segment.kind] + secrets.token_hex(16))
            item = self._item(segment, _IN_PROGRESS)
            yield self._event("response.output_item.added", output_index=segment.index, item=item)
            if segment.kind is not SegmentKind.TOOL_CALL:
                yield self._event("response.content_part.added", **self._place(segment), part=_part(segment))
        elif isinstance(change, Extended):
            yield self._event(
                f"{_PIECE[segment.kind]}.delta", **self._place(segment), **_logprobs(segment), delta=change.piece
            )
        elif isinstance(change, Ended):
            yield from self._ends(segment, status)

    def _ends(self, segment: Segment, status: str) -> Iterator[dict[str, Any]]:
        place, done = self._place(segment), f"{_PIECE[segment.kind]}.done"
        if segment.kind is SegmentKind.TOOL_CALL:
            yield self._event(done, **place, name=segment.name, arguments=segment.text)
        else:
            yield self._event(done, **place, **_logprobs(segment), text=segment.text)
            yield self._event("response.content_part.done", **place, part=_part(segment))
        item = self._item(segment, status)
        yield self._event("response.output_item.done", output_index=segment.index, item=item)

    def _place(self, segment: Segment) -> dict[str, Any]:
        """Where a piece of a segment belongs."""
        place = {"item_id": self._ids[segment.index], "output_index": segment.index}
        return place if segment.kind is SegmentKind.TOOL_CALL else place | {"content_index": 0}

    def _item(self, segment: Segment, status: str) -> dict[str, Any]:
        while len(self._ids) <= segment.index:  # not streamed
            self._ids.append(_PREFIXES[self.segments.all[len(self._ids)].kind] + secrets.token_hex(16))
        head = {"id": self._ids[segment.index], "status": status}
        if segment.kind is SegmentKind.TOOL_CALL:
            call = {"call_id": segment.call_id, "name": segment.name, "arguments": segment.text}
            return {"type": "function_call", **head, **call}
        # While an item is in progress its parts come as events of their own.
        parts = [] if status == _IN_PROGRESS else [_part(segment)]
        if segment.kind is SegmentKind.REASONING:
            return {"type": "reasoning", **head, "summary": [], "content": parts}
        return {"type": "message", **head, "role": "assistant", "content": parts}

    def _event(self, kind: str, **data: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._number, **data}
        self._number += 1
        return event

    def _object(self, status: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.view.model,
            "output": list(output),
            **_echo(self._body),
            "usage": None,
        }


class ResponseFormat(TypedEvents):
    """Errors as OpenAI's everywhere; in a stream that has begun they are a response that has failed."""

    def __init__(self, renderer: ResponseRenderer) -> None:
        self._renderer = renderer

    def error_events(self, response: ErrorResponse) -> list[dict[str, Any]]:
        return list(self._renderer.failed(response))


def _echo(body: ResponsesBody) -> dict[str, Any]:
    """The parameters, with their defaults where they were left out. Answers are never stored."""
    tool = {"type": "function", "description": None, "parameters": None, "strict": None}
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort, "summary": body.reasoning.summary},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": body.text.format or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool | each for each in body.tools or ()],
        "top_logprobs": 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
    }


def _status(report: Report) -> str:
    return _INCOMPLETE if report.usage.finish_reason is FinishReason.LENGTH else _COMPLETED


def _logprobs(segment: Segment) -> dict[str, Any]:
    """Events with text have this list; with `include` unset it is empty."""
    return {"logprobs": []} if segment.kind is SegmentKind.TEXT else {}


def _part(segment: Segment) -> dict[str, Any]:
    if segment.kind is SegmentKind.REASONING:
        return {"type": "reasoning_text", "text": segment.text}
    return {"type": "output_text", "text": segment.text, "annotations": [], "logprobs": []}


def _usage(prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    """`input_tokens` counts the prompt as it was sent, `cached_tokens` what the target had cached of what it read."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }
