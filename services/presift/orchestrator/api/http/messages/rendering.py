"""An answer as a message with blocks of content, whole or as the events of a stream; errors. Knows no HTTP."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from presift.core.generation import FinishReason
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.errors import ErrorResponse
from presift.orchestrator.api.http.presift_json import presift_of_decision, presift_of_explanation
from presift.orchestrator.api.http.segments import Begun, Change, Ended, Extended, Segment, SegmentKind
from presift.orchestrator.api.http.translated import SingleAnswer
from presift.orchestrator.api.http.wire_format import TypedEvents
from presift.orchestrator.pipeline.events import Delta, Event
from presift.orchestrator.planning.explain import Explanation
from presift.orchestrator.routing.decision import Decision

_DELTAS = {
    SegmentKind.REASONING: ("thinking_delta", "thinking"),
    SegmentKind.TEXT: ("text_delta", "text"),
    SegmentKind.TOOL_CALL: ("input_json_delta", "partial_json"),
}
_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# By these words clients recognise that they must shorten their prompt.
_TOO_LONG = "prompt is too long: "


class MessageRenderer(SingleAnswer):
    """One message. `stop` are the caller's stop sequences, of which the answer says which one ended it."""

    def __init__(self, view: View, stop: Sequence[str], tokenizer: Tokenizer | None) -> None:
        super().__init__(view)
        self.id = f"msg_{secrets.token_hex(16)}"
        self._stop = tuple(stop)
        self._tokenizer = tokenizer
        self._has_begun = False

    @property
    def wire_format(self) -> MessageFormat:
        return MessageFormat()

    def whole(self) -> dict[str, Any]:
        self.finish()
        content = [_block(segment) for segment in self.segments.all]
        return self._message(content, self._usage(), **self._stopped()) | {"presift": self.presift()}

    def chunks(self, prompt: int, event: Event) -> list[dict[str, Any]]:
        self.answers.add(prompt, event)
        if isinstance(event, Decision):
            return []  # nothing before the first token: an earlier error has its own status
        is_delta = isinstance(event, Delta)
        changes = self.segments.push(event) if isinstance(event, Delta) else self.segments.finish()
        events = [] if self._has_begun else [self._start()]
        events += [_event(change) for change in changes]
        return events if is_delta else [*events, *self._end()]

    def decision_chunk(self, decision: Decision) -> dict[str, Any]:
        return self._start() | {"presift": presift_of_decision(decision)}

    def explained(self, explanation: Explanation) -> dict[str, Any]:
        """No answer, but what would be kept for one."""
        usage = _usage(explanation.decision.prompt_tokens, 0, 0)
        presift = presift_of_explanation(explanation, self.view.ignored)
        return self._message([], usage, stop_reason="end_turn", stop_sequence=None) | {"presift": presift}

    def _start(self) -> dict[str, Any]:
        self._has_begun = True
        usage = _usage(self.answers.prompt_tokens, 0, 0)
        return {"type": "message_start", "message": self._message([], usage, stop_reason=None, stop_sequence=None)}

    def _end(self) -> Iterator[dict[str, Any]]:
        yield {
            "type": "message_delta",
            "delta": self._stopped(),
            "usage": self._usage(),
            "presift": self.presift(),
        }
        yield {"type": "message_stop"}

    def _message(self, content: list[dict[str, Any]], usage: Mapping[str, Any], **stopped: Any) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.view.model}
        return head | {"content": content, **stopped, "usage": usage}

    def _usage(self) -> dict[str, Any]:
        usage = self.report.usage
        return _usage(self.answers.prompt_tokens, usage.cached_tokens, usage.completion_tokens)

    def _stopped(self) -> dict[str, Any]:
        reason = self.report.usage.finish_reason
        if reason is FinishReason.LENGTH:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        stop = self._stop_found()
        if stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        return {"stop_reason": "tool_use" if self.segments.has_calls else "end_turn", "stop_sequence": None}

    def _stop_found(self) -> str | None:
        """The stop sequence in the answer: its tokens include it, its text does not."""
        if not self._stop or self._tokenizer is None:
            return None
        text = self._tokenizer.decode(self.answers.all[0].token_ids, skip_special_tokens=True)
        found = [(place, stop) for stop in self._stop if (place := text.find(stop)) >= 0]
        return min(found)[1] if found else None


class MessageFormat(TypedEvents):
    """Errors in Anthropic's format; `presift` as everywhere."""

    def error_body(self, response: ErrorResponse) -> dict[str, Any]:
        error = response.body["error"]
        kind = _ERRORS.get(response.status, "invalid_request_error")
        message = _TOO_LONG + error["message"] if error["code"] == "context_length_exceeded" else error["message"]
        more = {name: error[name] for name in ("param", "presift") if error.get(name) is not None}
        if error.get("param") == "thread":  # Anthropic's library then sends the whole conversation
            more["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
        return {"type": "error", "error": {"type": kind, "message": message, **more}}

    def error_events(self, response: ErrorResponse) -> list[dict[str, Any]]:
        return [self.error_body(response)]


def _event(change: Change) -> dict[str, Any]:
    segment = change.segment
    match change:
        case Begun():
            block = _block(segment, begins=True)
            return {"type": "content_block_start", "index": segment.index, "content_block": block}
        case Extended(_, piece):
            kind, key = _DELTAS[segment.kind]
            return {"type": "content_block_delta", "index": segment.index, "delta": {"type": kind, key: piece}}
        case Ended():
            return {"type": "content_block_stop", "index": segment.index}


def _block(segment: Segment, *, begins: bool = False) -> dict[str, Any]:
    text = "" if begins else segment.text
    if segment.kind is SegmentKind.REASONING:
        return {"type": "thinking", "thinking": text, "signature": ""}
    if segment.kind is SegmentKind.TEXT:
        return {"type": "text", "text": text, "citations": None}
    return {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": {} if begins else _input(text)}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as an object. A model that was cut off, or that makes mistakes, leaves none."""
    try:
        value = json.loads(arguments or "{}")
        json.dumps(value, allow_nan=False)  # NaN and 1e999 would be a body that is no JSON
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """`input_tokens` counts the prompt as it was sent, without what the target had cached of what it read."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }
