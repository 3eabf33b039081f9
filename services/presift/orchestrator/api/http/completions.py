"""OpenAI's chat and text completions, whole or in chunks, from the pipeline's events. Knows no HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from presift.orchestrator.api.grpc.responses import decision_to_wire, explanation_to_wire, report_to_wire
from presift.orchestrator.api.http.presift_json import presift_json
from presift.orchestrator.pipeline.events import Delta, Report
from presift.orchestrator.planning.explain import Explanation
from presift.orchestrator.routing.decision import Decision


@dataclass(frozen=True, slots=True)
class Shape:
    """How the answers of one endpoint look."""

    id_prefix: str
    whole: str
    chunk: str
    is_chat: bool


CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", is_chat=True)
TEXT = Shape("cmpl-", "text_completion", "text_completion", is_chat=False)


@dataclass(slots=True)
class Completion:
    """One answer as its events arrive. `model` is the target's id, `fingerprint` its revision.

    `shows_ids` adds the token ids to choices; `shows_usage` adds OpenAI's `usage` to chunks.
    """

    shape: Shape
    model: str
    fingerprint: str
    shows_ids: bool = False
    shows_usage: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    has_role: bool = False

    def __post_init__(self) -> None:
        self.id = self.shape.id_prefix + secrets.token_hex(16)

    def add(self, delta: Delta) -> None:
        """Keep a delta for `whole`."""
        self.text.append(delta.text)
        self.token_ids.extend(delta.token_ids)

    def whole(self, report: Report) -> dict[str, Any]:
        """The answer of all deltas that were added."""
        text = "".join(self.text)
        message = {"role": "assistant", "content": text, "refusal": None}
        content = {"message": message} if self.shape.is_chat else {"text": text}
        choice = self._choice(content, self.token_ids, _finish_reason(report))
        return self._object(self.shape.whole, [choice], usage=_usage(report), presift=_presift(report))

    def explained(self, explanation: Explanation) -> dict[str, Any]:
        """No answer, but what would be kept for one."""
        details = presift_json(explanation_to_wire(explanation))
        presift = {"decision": details.pop("decision"), "explanation": details}
        prompt_tokens = explanation.decision.prompt_tokens
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens}
        return self._object(self.shape.whole, [], usage=usage, presift=presift)

    def decision_chunk(self, decision: Decision) -> dict[str, Any]:
        """The decision, for a stream whose header was sent without it."""
        return self.chunk(Delta("", ())) | {"presift": {"decision": presift_json(decision_to_wire(decision))}}

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """One delta."""
        unset = {"usage": None} if self.shows_usage else {}
        choice = self._choice(self._content(delta.text), delta.token_ids, None)
        return self._object(self.shape.chunk, [choice], **unset)

    def last_chunks(self, report: Report) -> list[dict[str, Any]]:
        """The finish reason and, if requested, the usage. The last chunk has the decision."""
        choice, presift = self._choice(self._content(""), (), _finish_reason(report)), _presift(report)
        if not self.shows_usage:
            return [self._object(self.shape.chunk, [choice], presift=presift)]
        return [
            self._object(self.shape.chunk, [choice], usage=None),
            self._object(self.shape.chunk, [], usage=_usage(report), presift=presift),
        ]

    def _content(self, text: str) -> dict[str, Any]:
        if not self.shape.is_chat:
            return {"text": text}
        role = {} if self.has_role else {"role": "assistant", "content": ""}
        self.has_role = True
        return {"delta": role | ({"content": text} if text else {})}

    def _choice(self, content: dict[str, Any], token_ids: Sequence[int], finish: str | None) -> dict[str, Any]:
        ids = {"token_ids": list(token_ids)} if self.shows_ids else {}
        return {"index": 0, **content, **ids, "logprobs": None, "finish_reason": finish}

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head | {"system_fingerprint": self.fingerprint, "choices": choices} | more


def _finish_reason(report: Report) -> str:
    return report.usage.finish_reason.value


def _usage(report: Report) -> dict[str, Any]:
    """`prompt_tokens` counts the prompt as it was sent, `cached_tokens` what the target had cached of what it read."""
    prompt_tokens, completion_tokens = report.decision.prompt_tokens, report.usage.completion_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": report.usage.cached_tokens},
    }


def _presift(report: Report) -> dict[str, Any]:
    decision, usage = decision_to_wire(report.decision), report_to_wire(report)
    return {"decision": presift_json(decision), "usage": presift_json(usage)}
