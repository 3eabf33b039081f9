"""The answers of one call as their events arrive: what each endpoint renders. Knows no endpoint's format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from presift.core.answer import TokenLogprob, ToolCallDelta
from presift.core.generation import FinishReason
from presift.orchestrator.pipeline.events import Delta, Event, Report
from presift.orchestrator.routing.decision import Decision


@dataclass(slots=True)
class ToolCall:
    """A call of a tool, complete once its answer has ended."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """One answer so far: `generated` tokens, and their content if it is kept. `report` is None until it has ended."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    report: Report | None = None
    generated: int = 0

    def add(self, delta: Delta) -> None:
        self.generated += len(delta.token_ids)
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        for call in delta.tool_calls:
            self._add_call(call)

    def _add_call(self, delta: ToolCallDelta) -> None:
        while len(self.tool_calls) <= delta.index:
            self.tool_calls.append(ToolCall("", "", ""))
        call = self.tool_calls[delta.index]
        call.id, call.name = delta.id or call.id, delta.name or call.name
        call.arguments += delta.arguments

    @property
    def completion_tokens(self) -> int:
        return self.generated if self.report is None else self.report.usage.completion_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.report is None else self.report.usage.finish_reason


@dataclass(slots=True)
class ReadPrompt:
    """A prompt of the call: its decision and, if its answers show them, its token ids and its text."""

    decision: Decision | None = None
    token_ids: NDArray[np.uint32] | None = None
    text: str = ""


@dataclass(slots=True)
class Answers:
    """All answers of a call: `choices` to each of the `prompts`. Answer i is number `prompt * choices + choice`."""

    prompts: list[ReadPrompt]
    choices: int
    all: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.all = [Answer() for _ in range(len(self.prompts) * self.choices)]

    def number(self, prompt: int, event: Delta | Report) -> int:
        return prompt * self.choices + event.choice

    def prompt_of(self, number: int) -> ReadPrompt:
        return self.prompts[number // self.choices]

    def first_of(self, number: int) -> Answer:
        """The first answer to the same prompt."""
        return self.all[number - number % self.choices]

    def add(self, prompt: int, event: Event) -> None:
        """Keep what an event of prompt number `prompt` says."""
        if isinstance(event, Decision):
            self.prompts[prompt].decision = event
        elif isinstance(event, Delta):
            self.all[self.number(prompt, event)].add(event)
        else:
            self.all[self.number(prompt, event)].report = event

    def count(self, prompt: int, event: Event) -> None:
        """Keep of a Delta only the number of its tokens, and the other events as `add` does."""
        if isinstance(event, Delta):
            self.all[self.number(prompt, event)].generated += len(event.token_ids)
        else:
            self.add(prompt, event)

    @property
    def reports(self) -> Iterator[Report]:
        return (answer.report for answer in self.all if answer.report is not None)

    @property
    def have_ended(self) -> bool:
        return all(answer.report is not None for answer in self.all)

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, as it was sent."""
        return sum(prompt.decision.prompt_tokens for prompt in self.prompts if prompt.decision is not None)

    @property
    def completion_tokens(self) -> int:
        return sum(answer.completion_tokens for answer in self.all)

    @property
    def cached_tokens(self) -> int:
        """What the target had cached of what it read, for the first answer to each prompt."""
        return sum(report.usage.cached_tokens for report in self.reports if report.choice == 0)

    @property
    def reasoning_tokens(self) -> int:
        return sum(report.usage.reasoning_tokens for report in self.reports)
