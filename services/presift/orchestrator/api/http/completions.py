"""What chat and text completions have in common: objects of OpenAI's format, whole or in chunks. Knows no HTTP."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from presift.core.generation import FinishReason
from presift.orchestrator.api.http.answers import Answer, Answers, ReadPrompt
from presift.orchestrator.api.http.presift_json import presift_of_answers, presift_of_decision, presift_of_explanation
from presift.orchestrator.pipeline.events import Delta, Event, Report
from presift.orchestrator.planning.explain import Explanation
from presift.orchestrator.prompt.token_texts import TokenTexts
from presift.orchestrator.routing.decision import Decision


@dataclass(frozen=True, slots=True)
class View:
    """What a caller sees of its answers. `model` is the target's id, `fingerprint` its revision.

    `usage`: OpenAI's usage ends a stream; `usage_in_chunks`: it is in every chunk. `echo`: the prompt's text comes
    first. `no_answer`: of the answer nothing is shown. `ignored`: the parameters that had no effect.
    """

    model: str = ""
    fingerprint: str = ""
    prompts: int = 1
    choices: int = 1
    token_ids: bool = False
    prompt_ids: bool = False
    usage: bool = False
    usage_in_chunks: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    special_tokens: bool = False
    reasoning_in_chunks: bool = True
    echo: bool = False
    no_answer: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def needs_prompt(self) -> bool:
        """Whether the prompts' token ids are shown, or their text."""
        return self.prompt_ids or self.echo


class Completion(ABC):
    """The answers of one call as one object, or as chunks of one: add all events to one of both."""

    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    id_prefix: ClassVar[str]

    def __init__(self, view: View, texts: TokenTexts) -> None:
        self.view = view
        self.texts = texts
        self.answers = Answers([ReadPrompt() for _ in range(view.prompts)], view.choices)
        self._id = self.id_prefix + secrets.token_hex(16)
        self._created = int(time.time())
        self._begun: set[int] = set()

    @property
    def keeps_stream(self) -> bool:
        """Whether `chunks` keeps what it gets: until the end, or reasoning until the content."""
        return self.view.prompt_logprobs or not self.view.reasoning_in_chunks

    def add(self, prompt: int, event: Event) -> None:
        """Keep an event of prompt number `prompt`."""
        self.answers.add(prompt, event)

    def whole(self) -> dict[str, Any]:
        """The answers, when all have ended."""
        choices = [self._whole_choice(number, answer) for number, answer in enumerate(self.answers.all)]
        return self._object(self.whole_kind, choices, usage=self._usage(), presift=self._presift())

    def chunks(self, prompt: int, event: Event) -> list[dict[str, Any]]:
        """An event as the next chunks of a stream. The last one has the decision."""
        if self.view.prompt_logprobs:
            self.add(prompt, event)
        else:
            self.answers.count(prompt, event)
        if isinstance(event, Decision):
            return []
        number = self.answers.number(prompt, event)
        if isinstance(event, Delta):
            return [self._chunk(self._chunk_choice(number, event))] if self._is_shown(event) else []
        return self._last_chunks(number, event)

    def decision_chunk(self, decision: Decision) -> dict[str, Any]:
        """The decision, for a stream whose header was sent without it."""
        if self.view.prompt_logprobs or self.view.needs_prompt:  # the texts come later
            chunk = self._object(self.chunk_kind, [])
        else:
            chunk = self._chunk(self._chunk_choice(0, Delta("", ())))
        return chunk | {"presift": presift_of_decision(decision)}

    def explained(self, explanation: Explanation) -> dict[str, Any]:
        """No answer, but what would be kept for one."""
        presift = presift_of_explanation(explanation, self.view.ignored)
        prompt_tokens = explanation.decision.prompt_tokens
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens}
        return self._object(self.whole_kind, [], usage=usage, presift=presift)

    @abstractmethod
    def _content(self, number: int, answer: Answer) -> dict[str, Any]:
        """The keys of a whole choice that hold its answer."""

    @abstractmethod
    def _delta(self, number: int, delta: Delta, *, is_first: bool) -> dict[str, Any]:
        """The keys of a chunk's choice that hold what is new."""

    def _last_delta(self, number: int, report: Report) -> Delta:
        """What was held back until the end."""
        return Delta("", (), choice=report.choice)

    def _is_shown(self, delta: Delta) -> bool:
        if self.view.prompt_logprobs or self.view.no_answer:
            return False  # a prompt's log probabilities come with its end, and before those of the answer
        shows = (self.view.token_ids and delta.token_ids) or (self.view.logprobs and delta.logprobs)
        return delta.has_content or bool(shows)

    def _last_chunks(self, number: int, report: Report) -> list[dict[str, Any]]:
        has_ended = self.answers.have_ended
        if self.view.prompt_logprobs:  # known at the end, and first in the text: nothing was sent before
            whole = enumerate(self.answers.all) if has_ended else ()
            chunks = [self._chunk(self._whole_choice(each, answer)) for each, answer in whole]
        else:
            choice = self._chunk_choice(number, self._last_delta(number, report))
            chunks = [self._chunk(choice | {"finish_reason": self._finish_reason(report)})]
        if has_ended and self.view.usage:
            chunks.append(self._object(self.chunk_kind, [], usage=self._usage()))
        if has_ended:
            chunks[-1]["presift"] = self._presift()
        return chunks

    def _whole_choice(self, number: int, answer: Answer) -> dict[str, Any]:
        finish = None if answer.report is None else self._finish_reason(answer.report)
        content = self._content(number, answer)
        return self._choice(number, content, [] if self.view.no_answer else answer.token_ids, finish)

    def _chunk_choice(self, number: int, delta: Delta) -> dict[str, Any]:
        is_first = number not in self._begun
        self._begun.add(number)
        content = self._delta(number, delta, is_first=is_first)
        return self._choice(number, content, list(delta.token_ids), None, shows_prompt=is_first)

    def _choice(
        self, number: int, content: dict[str, Any], ids: list[int], finish: str | None, *, shows_prompt: bool = True
    ) -> dict[str, Any]:
        choice = {"index": number, **content, "finish_reason": finish}
        if self.view.token_ids:
            choice["token_ids"] = ids
        prompt_ids = self.answers.prompt_of(number).token_ids
        if self.view.prompt_ids and shows_prompt and prompt_ids is not None:
            choice["prompt_token_ids"] = prompt_ids.tolist()
        return choice

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        if self.view.usage_in_chunks:
            return self._object(self.chunk_kind, [choice], usage=self._usage())
        return self._object(self.chunk_kind, [choice], **({"usage": None} if self.view.usage else {}))

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self.view.model}
        return head | {"system_fingerprint": self.view.fingerprint, "choices": choices} | more

    def _usage(self) -> dict[str, Any]:
        answers = self.answers
        prompt_tokens = answers.prompt_tokens
        completion_tokens = 0 if self.view.no_answer else answers.completion_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": answers.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": answers.reasoning_tokens},
        }

    def _presift(self) -> dict[str, Any]:
        return presift_of_answers(list(self.answers.reports), self.view.ignored)

    def _finish_reason(self, report: Report) -> str:
        return FinishReason.LENGTH if self.view.no_answer else report.usage.finish_reason
