"""Answers in OpenAI's shapes: chat completions and text completions, whole or in chunks. Pure; knows no HTTP."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from presift.orchestrator.api.http.errors import told
from presift.v1 import orchestrator_pb2, target_pb2

_FINISH = {target_pb2.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Shape:
    """How one endpoint's answers look."""

    prefix: str
    whole: str
    chunk: str
    is_chat: bool


CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", is_chat=True)
TEXT = Shape("cmpl-", "text_completion", "text_completion", is_chat=False)


@dataclass(slots=True)
class Answer:
    """One answer as it comes: `model` is the target's id, `fingerprint` its revision. `shows_ids`: token ids too."""

    shape: Shape
    model: str
    fingerprint: str
    shows_ids: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    has_begun: bool = False

    def __post_init__(self) -> None:
        self.id = self.shape.prefix + secrets.token_hex(16)

    def hear(self, delta: orchestrator_pb2.TextDelta) -> None:
        """Keep what is new for `whole`."""
        self.text.append(delta.text)
        self.token_ids.extend(delta.token_ids)

    def whole(self, decision: orchestrator_pb2.Decision, usage: orchestrator_pb2.Usage) -> dict[str, Any]:
        """All of it, of what was heard."""
        text = "".join(self.text)
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.shape.is_chat else None
        choice = self._choice(said or {"text": text}, self.token_ids, finish_reason(usage))
        return self._object(self.shape.whole, [choice], usage=usage_of(usage), presift=_presift(decision, usage))

    def explained(self, explanation: orchestrator_pb2.ExplainResponse) -> dict[str, Any]:
        """No answer, but what would be kept for one."""
        made = told(explanation)
        presift = {"decision": made.pop("decision"), "explanation": made}
        prompt_tokens = explanation.decision.prompt_tokens
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens}
        return self._object(self.shape.whole, [], usage=usage, presift=presift)

    def opening(self, decision: orchestrator_pb2.Decision, *, has_usage: bool) -> dict[str, Any]:
        """The decision, where it comes too late for the header."""
        empty = self.chunk(orchestrator_pb2.TextDelta(), has_usage=has_usage)
        return empty | {"presift": {"decision": told(decision)}}

    def chunk(self, delta: orchestrator_pb2.TextDelta, *, has_usage: bool) -> dict[str, Any]:
        """What is new."""
        said = self._delta(delta.text) if self.shape.is_chat else {"text": delta.text}
        unset = {"usage": None} if has_usage else {}
        return self._object(self.shape.chunk, [self._choice(said, delta.token_ids, None)], **unset)

    def ends(
        self, decision: orchestrator_pb2.Decision, usage: orchestrator_pb2.Usage, *, has_usage: bool
    ) -> list[dict[str, Any]]:
        """The last chunks: why it ended and, where that is asked for, its usage. The last one has the decision."""
        said = self._delta("") if self.shape.is_chat else {"text": ""}
        choice, presift = self._choice(said, (), finish_reason(usage)), _presift(decision, usage)
        if not has_usage:
            return [self._object(self.shape.chunk, [choice], presift=presift)]
        return [
            self._object(self.shape.chunk, [choice], usage=None),
            self._object(self.shape.chunk, [], usage=usage_of(usage), presift=presift),
        ]

    def _delta(self, text: str) -> dict[str, Any]:
        role = {} if self.has_begun else {"role": "assistant", "content": ""}
        self.has_begun = True
        return {"delta": role | ({"content": text} if text else {})}

    def _choice(self, said: dict[str, Any], token_ids: Any, finish: str | None) -> dict[str, Any]:
        ids = {"token_ids": list(token_ids)} if self.shows_ids else {}
        return {"index": 0, **said, **ids, "logprobs": None, "finish_reason": finish}

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        known = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return known | {"system_fingerprint": self.fingerprint, "choices": choices} | more


def finish_reason(usage: orchestrator_pb2.Usage) -> str:
    return _FINISH.get(usage.finish_reason, "stop")


def usage_of(usage: orchestrator_pb2.Usage) -> dict[str, Any]:
    """`prompt_tokens` is the prompt as it was asked, `cached_tokens` is of what was read of it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _presift(decision: orchestrator_pb2.Decision, usage: orchestrator_pb2.Usage) -> dict[str, Any]:
    return {"decision": told(decision), "usage": told(usage)}
