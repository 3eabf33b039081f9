"""/v1/chat/completions and /v1/completions: an OpenAI request in, the pipeline's events out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from presift.core.errors import DeadlineExceeded, InvalidRequest, PermissionDenied
from presift.orchestrator.api.http.body import in_thread_if_large, parse_json_object, read_body
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.completions import CHAT, TEXT, Completion, Shape
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.presift_json import DECISION_HEADER, decision_header
from presift.orchestrator.api.http.requests import parameter_names, request_from_body
from presift.orchestrator.api.http.schema import (
    MAX_TIMEOUT_S,
    Body,
    ChatBody,
    CompletionBody,
    ExplainOptions,
    validate,
)
from presift.orchestrator.api.http.sse import Reply, json_bytes
from presift.orchestrator.api.http.unsupported import supported_parameters
from presift.orchestrator.domain.request import Request
from presift.orchestrator.pipeline.events import Delta, Event
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.explain import Detail
from presift.orchestrator.routing.decision import Decision
from presift.rpc.deadline import NO_DEADLINE, Deadline

TIMEOUT_KEY = "presift-timeout-s"


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """`max_new_tokens` counts for requests that name no number; `salt` is the deployment's."""

    max_body_bytes: int
    max_new_tokens: int
    salt: str = ""
    explains: bool = True


class CompletionEndpoints:
    """Both endpoints over one Pipeline."""

    def __init__(self, pipeline: Pipeline, models: ServedModels, options: EndpointOptions) -> None:
        self._pipeline = pipeline
        self._models = models
        self._options = options

    async def chat(self, call: Call) -> None:
        await self._complete(call, ChatBody, CHAT)

    async def text(self, call: Call) -> None:
        await self._complete(call, CompletionBody, TEXT)

    async def _complete(self, call: Call, schema: type[Body], shape: Shape) -> None:
        arrived_s = time.monotonic()
        raw = await read_body(call.headers, call.receive, self._options.max_body_bytes)
        given = await in_thread_if_large(len(raw), lambda: supported_parameters(parse_json_object(raw)))
        if isinstance(model := given.get("model"), str):
            self._models.find(model)  # an unknown model is reported before an invalid parameter
        body = await in_thread_if_large(len(raw), lambda: validate(schema, given))
        call.reply.names = parameter_names(body)
        target = self._models.find(body.model)
        completion = Completion(
            shape,
            target.id,
            target.revision,
            shows_ids=body.presift.token_ids,
            shows_usage=body.stream_options is not None and body.stream_options.include_usage,
        )
        timeout_s = _timeout_s(call, body)
        # The deadline counts from the end of the headers.
        deadline = NO_DEADLINE if timeout_s is None else Deadline(arrived_s + timeout_s)
        try:
            async with call.client.cancels_on_disconnect(), deadline.timeout() as timeout:
                await self._answer(call, body, completion, deadline, len(raw))
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded("the deadline passed") from None

    async def _answer(self, call: Call, body: Body, completion: Completion, deadline: Deadline, size: int) -> None:
        options = self._options
        request = await in_thread_if_large(
            size, lambda: request_from_body(body, options.max_new_tokens, call.caller, options.salt)
        )
        if body.presift.explain is not None:
            detail = _detail(body.presift.explain)
            await self._explain(call, request, detail, completion, deadline, is_stream=body.stream)
            return
        if body.stream_options is not None and not body.stream:
            raise InvalidRequest("stream_options", "given", "left out, unless stream is true")
        async with aclosing(self._pipeline.generate(request, deadline)) as events:
            await (_stream if body.stream else _send_whole)(events, completion, call.reply)

    async def _explain(
        self,
        call: Call,
        request: Request,
        detail: Detail,
        completion: Completion,
        deadline: Deadline,
        *,
        is_stream: bool,
    ) -> None:
        if not self._options.explains:
            raise PermissionDenied("Explain is disabled on this server (--no-explain)")
        if is_stream:
            raise InvalidRequest("stream", True, "false with presift.explain")
        explanation = await self._pipeline.explain(request, detail, deadline)
        # A span for every token takes a while to encode: other requests stream meanwhile.
        raw = await asyncio.to_thread(lambda: json_bytes(completion.explained(explanation)))
        await call.reply.send_bytes(200, raw, {DECISION_HEADER: decision_header(explanation.decision)})


def _detail(options: ExplainOptions) -> Detail:
    return Detail(kv_mask=options.include_kv_mask, span_per_token=options.span_per_token)


async def _send_whole(events: AsyncGenerator[Event, None], completion: Completion, reply: Reply) -> None:
    async for event in events:
        if isinstance(event, Delta):
            completion.add(event)
        elif not isinstance(event, Decision):
            report = event
    # Sent when the events have ended: the call has released its tenant's limits before its caller can send another.
    header = {DECISION_HEADER: decision_header(report.decision)}
    await reply.send_json(200, completion.whole(report), header)


async def _stream(events: AsyncGenerator[Event, None], completion: Completion, reply: Reply) -> None:
    async with reply.event_stream():
        async for event in events:
            if isinstance(event, Decision):
                if not reply.add_header(DECISION_HEADER, decision_header(event)):
                    await reply.send_event(completion.decision_chunk(event))
            elif isinstance(event, Delta):
                if event.text or (completion.shows_ids and event.token_ids):
                    await reply.send_event(completion.chunk(event))
            else:
                report = event
        for chunk in completion.last_chunks(report):
            await reply.send_event(chunk)
        await reply.send_done()


def _timeout_s(call: Call, body: Body) -> float | None:
    """The shorter of the timeouts in the body and in the header."""
    header = call.headers.get(TIMEOUT_KEY)
    timeouts = [] if body.presift.timeout_s is None else [body.presift.timeout_s]
    if header is not None:
        try:
            timeouts.append(float(header))
        except ValueError:
            raise InvalidRequest(TIMEOUT_KEY, brief(header), "a number of seconds") from None
        if not 0.0 < timeouts[-1] <= MAX_TIMEOUT_S:
            raise InvalidRequest(TIMEOUT_KEY, brief(header), f"0 < seconds <= {MAX_TIMEOUT_S}")
    return min(timeouts, default=None)
