"""From requests to a response: what all endpoints that answer prompts have in common.

An endpoint reads a body into requests and brings a renderer for the events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from presift.core.errors import DeadlineExceeded, PromptTooLong
from presift.orchestrator.api.http.answers import Answers
from presift.orchestrator.api.http.batches import NumberedEvent, answer_all
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.disconnect import Client
from presift.orchestrator.api.http.presift_json import DECISION_HEADER, decision_header
from presift.orchestrator.api.http.repeated_prompts import bytes_in_choice, check_repeated
from presift.orchestrator.api.http.reply import Reply, json_bytes
from presift.orchestrator.domain.request import Request, Text
from presift.orchestrator.pipeline.events import Delta, Event, Report, held_bytes
from presift.orchestrator.pipeline.explainer import check_explains
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.explain import Detail, Explanation
from presift.orchestrator.prompt.raw_tokens import text_of
from presift.orchestrator.prompt.tokenizing_limit import check_text_length
from presift.orchestrator.routing.decision import Decision
from presift.rpc.deadline import Deadline
from presift.rpc.large_input import in_thread_if_large

# An answer's place in a response, with its usage and decision, takes as long to make as so much text.
_EVENT_BYTES = 1024
# Memory of a delta that is kept, beside its content.
_DELTA_BYTES = 80
# Fewer bytes are not worth counting one by one.
_COUNTED_AT_ONCE = 1024


class Renderer(Protocol):
    """Makes an endpoint's format of the events of its requests; an event has its request's number."""

    view: View
    answers: Answers

    @property
    def keeps_stream(self) -> bool:
        """Whether `chunks` keeps what it gets."""

    def add(self, prompt: int, event: Event) -> None:
        """Keep an event for `whole`."""

    def whole(self) -> Mapping[str, Any]:
        """The body, when all events were added."""

    def chunks(self, prompt: int, event: Event) -> Sequence[Mapping[str, Any]]:
        """The same event as pieces of a stream."""

    def decision_chunk(self, decision: Decision) -> Mapping[str, Any]:
        """The decision, for a stream whose header was sent without it."""

    def explained(self, explanation: Explanation) -> Mapping[str, Any]:
        """The body of an explanation."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one call asks for. With `explain` nothing is generated."""

    requests: tuple[Request, ...]
    renderer: Renderer
    is_stream: bool = False
    explain: Detail | None = None

    def bytes_in_choice(self, number: int) -> int:
        """The memory of prompt `number` in each choice of the response that shows it."""
        top_logprobs = self.requests[number].sampling.top_logprobs or 0
        return bytes_in_choice(self.renderer.view, self.renderer.answers.prompts[number], top_logprobs)

    def shown_bytes(self) -> int:
        """The memory of all prompts in one choice to each."""
        return sum(map(self.bytes_in_choice, range(len(self.requests))))


class Answering:
    """Carries out what calls ask for."""

    def __init__(self, pipeline: Pipeline, *, explains: bool) -> None:
        self._pipeline = pipeline
        self._explains = explains

    @asynccontextmanager
    async def until(self, deadline: Deadline, client: Client) -> AsyncIterator[None]:
        """The block is cancelled when its client disconnects, and raises DeadlineExceeded when the deadline passes."""
        try:
            async with client.cancels_on_disconnect(), deadline.timeout() as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded("the deadline passed") from None

    async def answer(self, reply: Reply, asked: Asked, deadline: Deadline) -> None:
        """Send the response."""
        if asked.explain is not None:
            await self._explain(reply, asked.requests[0], asked.explain, asked.renderer, deadline)
            return
        async with aclosing(self._events(asked, deadline)) as events:
            await (_stream if asked.is_stream else _send_whole)(events, asked, reply)

    async def _events(self, asked: Asked, deadline: Deadline) -> AsyncGenerator[NumberedEvent, None]:
        choice_bytes = 0
        merged = answer_all(lambda request: self._pipeline.generate(request, deadline), asked.requests)
        async with aclosing(merged) as events:
            async for number, event in events:
                if isinstance(event, Decision) and asked.renderer.view.needs_prompt:
                    await self._read_prompt(asked, number)
                    choice_bytes += asked.bytes_in_choice(number)
                    check_repeated(asked.renderer.view, choice_bytes, asked.renderer.answers.prompts)
                yield number, event

    async def _read_prompt(self, asked: Asked, number: int) -> None:
        """Give the renderer a prompt's token ids and text. The tokenizer remembers a prompt that was just read."""
        tokenizer, request = self._pipeline.parts.tokenizer, asked.requests[number]
        tokens = await tokenizer.tokenize(request.prompt, request.salt)
        prompt = asked.renderer.answers.prompts[number]
        prompt.token_ids = tokens.ids
        if isinstance(request.prompt, Text):
            prompt.text = request.prompt.text
        elif tokenizer.backend is not None and asked.renderer.view.echo:
            # A text has at most one token per byte.
            keeps_special = request.sampling.keep_special_tokens
            text = partial(_prompt_text, tokenizer.backend, tokens.ids, keeps_special=keeps_special)
            prompt.text = await tokenizer.limit.run(text, tokens.ids.size)

    async def _explain(
        self, reply: Reply, request: Request, detail: Detail, renderer: Renderer, deadline: Deadline
    ) -> None:
        check_explains(self._explains)

        def render(explanation: Explanation) -> tuple[bytes, str]:
            return json_bytes(renderer.explained(explanation)), decision_header(explanation.decision)

        raw, header = await self._pipeline.explainer.explain(request, detail, render, deadline)
        await reply.send_bytes(200, raw, {DECISION_HEADER: header})


def _prompt_text(backend: Tokenizer, token_ids: NDArray[np.uint32], *, keeps_special: bool) -> str:
    """Raises PromptTooLong."""
    ids = token_ids.tolist()
    try:
        check_text_length(backend, ids)
    except PromptTooLong as error:
        raise PromptTooLong("prompt.token_ids", error.value, f"{error.limit}, with echo") from None
    return text_of(backend, ids, skip_special_tokens=not keeps_special)


def _size_of(event: Event) -> int:
    return _EVENT_BYTES if isinstance(event, Decision) else held_bytes(event) + _DELTA_BYTES


class _Kept:
    """Counts the memory of what a renderer keeps. The pipeline counts an event until it is asked for the next one, so
    one counts here from then on. `size` is the sum, in bytes."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._uncounted = 0
        self.size = 0

    def add(self, size: int) -> None:
        """An event of `size` bytes is kept from now on. Raises Overloaded."""
        if self._uncounted >= _COUNTED_AT_ONCE:
            self.count()
        self._uncounted += size
        self.size += size

    def count(self, more: int = 0) -> None:
        """Count all events, and `more` bytes. Raises Overloaded."""
        self._reply.hold(self._uncounted + more)
        self._uncounted = 0


async def _send_whole(events: AsyncGenerator[NumberedEvent, None], asked: Asked, reply: Reply) -> None:
    renderer, kept = asked.renderer, _Kept(reply)
    async for number, event in events:
        kept.add(_size_of(event))
        renderer.add(number, event)
    # Sent when the events have ended: the call has released its tenant's limits before its caller can send another.
    first = next(renderer.answers.reports)
    header = {DECISION_HEADER: decision_header(first.decision)}
    shown = asked.shown_bytes()
    kept.count((renderer.view.choices - 1) * shown)
    size = kept.size + renderer.view.choices * shown
    raw = await in_thread_if_large(size, lambda: json_bytes(renderer.whole()))
    await reply.send_bytes(200, raw, header)


async def _stream(events: AsyncGenerator[NumberedEvent, None], asked: Asked, reply: Reply) -> None:
    streamed = _Streamed(asked, reply)
    async with reply.event_stream():
        has_decision = False
        async for number, event in events:
            if isinstance(event, Decision) and not has_decision:
                has_decision = True
                if not reply.add_header(DECISION_HEADER, decision_header(event)):
                    await reply.send_event(asked.renderer.decision_chunk(event))
            await streamed.send(number, event)
        await reply.send_done()


class _Streamed:
    """The events of a stream as they are sent. What takes long to make is made in a thread: a long prompt, the log
    probabilities of one, deltas that waited and were joined."""

    def __init__(self, asked: Asked, reply: Reply) -> None:
        self._asked, self._reply = asked, reply
        self._renderer, self._kept = asked.renderer, _Kept(reply)
        view = asked.renderer.view
        self._shows_prompt = view.needs_prompt or view.prompt_logprobs
        # The choices of which something was shown: the number of the prompt, and theirs.
        self._begun = set[tuple[int, int]]()

    async def send(self, number: int, event: Event) -> None:
        """Raises Overloaded if there is no room for what is kept, or for what is sent."""
        size = _size_of(event)
        if self._renderer.keeps_stream:
            self._kept.add(size)
        if self._shows_prompt and not isinstance(event, Decision):
            size += self._prompt_size(number, event)
        lines = await in_thread_if_large(size, lambda: self._lines(number, event))
        if lines and self._shows_prompt and not isinstance(event, Decision):
            self._begun.add((number, event.choice))
        held = sum(map(len, lines))
        is_counted = held >= _COUNTED_AT_ONCE
        if is_counted:
            self._reply.hold(held)
        for each in lines:
            await self._reply.send_lines(each)
        if is_counted:
            self._reply.hold(-held)

    def _lines(self, number: int, event: Event) -> list[bytes]:
        return [self._reply.event_lines(chunk) for chunk in self._renderer.chunks(number, event)]

    def _prompt_size(self, number: int, event: Delta | Report) -> int:
        """The bytes of the prompt that the lines of an event may show."""
        if self._renderer.view.prompt_logprobs:  # all answers come with the last report
            return self._kept.size + self._asked.shown_bytes() if isinstance(event, Report) else 0
        return 0 if (number, event.choice) in self._begun else self._asked.bytes_in_choice(number)
