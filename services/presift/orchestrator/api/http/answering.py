"""From requests to a response: what all endpoints that answer prompts have in common.

An endpoint reads a body into requests and brings a renderer for the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from presift.core.errors import DeadlineExceeded, PermissionDenied
from presift.orchestrator.api.http.answers import Answers
from presift.orchestrator.api.http.batches import NumberedEvent, answer_all
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.disconnect import Client
from presift.orchestrator.api.http.presift_json import DECISION_HEADER, decision_header
from presift.orchestrator.api.http.sse import Reply, json_bytes
from presift.orchestrator.domain.request import Request, Text
from presift.orchestrator.pipeline.events import Event, held_bytes
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.explain import Detail, Explanation
from presift.orchestrator.routing.decision import Decision
from presift.rpc.deadline import Deadline
from presift.rpc.large_input import LARGE_BYTES, in_thread_if_large

# An answer's place in a response, with its usage and decision, takes as long to make as so much text.
_EVENT_BYTES = 1024


class Renderer(Protocol):
    """Makes an endpoint's format of the events of its requests; an event has its request's number."""

    view: View
    answers: Answers

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
            await (_stream if asked.is_stream else _send_whole)(events, asked.renderer, reply)

    async def _events(self, asked: Asked, deadline: Deadline) -> AsyncGenerator[NumberedEvent, None]:
        merged = answer_all(lambda request: self._pipeline.generate(request, deadline), asked.requests)
        async with aclosing(merged) as events:
            async for number, event in events:
                if isinstance(event, Decision) and asked.renderer.view.needs_prompt:
                    await self._read_prompt(asked, number)
                yield number, event

    async def _read_prompt(self, asked: Asked, number: int) -> None:
        """Give the renderer a prompt's token ids and text. The tokenizer remembers a prompt that was just read."""
        tokenizer, request = self._pipeline.parts.tokenizer, asked.requests[number]
        tokens = await tokenizer.tokenize(request.prompt, request.salt)
        prompt = asked.renderer.answers.prompts[number]
        prompt.token_ids = tokens.ids
        if isinstance(request.prompt, Text):
            prompt.text = request.prompt.text
        elif tokenizer.backend is not None:
            skips = not request.sampling.keep_special_tokens
            decode = tokenizer.backend.decode
            prompt.text = await asyncio.to_thread(lambda: decode(tokens.ids.tolist(), skip_special_tokens=skips))

    async def _explain(
        self, reply: Reply, request: Request, detail: Detail, renderer: Renderer, deadline: Deadline
    ) -> None:
        if not self._explains:
            raise PermissionDenied("Explain is disabled on this server (--no-explain)")

        def render(explanation: Explanation) -> tuple[bytes, str]:
            return json_bytes(renderer.explained(explanation)), decision_header(explanation.decision)

        raw, header = await self._pipeline.explain(request, detail, render, deadline)
        await reply.send_bytes(200, raw, {DECISION_HEADER: header})


async def _send_whole(events: AsyncGenerator[NumberedEvent, None], renderer: Renderer, reply: Reply) -> None:
    size = 0
    async for number, event in events:
        renderer.add(number, event)
        size += _EVENT_BYTES if isinstance(event, Decision) else held_bytes(event)
    # Sent when the events have ended: the call has released its tenant's limits before its caller can send another.
    first = next(renderer.answers.reports)
    header = {DECISION_HEADER: decision_header(first.decision)}
    if renderer.view.needs_prompt:
        size += LARGE_BYTES  # as long as its prompts
    raw = await in_thread_if_large(size, lambda: json_bytes(renderer.whole()))
    await reply.send_bytes(200, raw, header)


async def _stream(events: AsyncGenerator[NumberedEvent, None], renderer: Renderer, reply: Reply) -> None:
    async with reply.event_stream():
        has_decision = False
        async for number, event in events:
            if isinstance(event, Decision) and not has_decision:
                has_decision = True
                if not reply.add_header(DECISION_HEADER, decision_header(event)):
                    await reply.send_event(renderer.decision_chunk(event))
            for chunk in renderer.chunks(number, event):
                await reply.send_event(chunk)
        await reply.send_done()
