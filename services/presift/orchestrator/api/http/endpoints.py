"""The endpoints that answer prompts: OpenAI's request in, the pipeline's events out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from presift.core.errors import DeadlineExceeded, InvalidRequest, PermissionDenied
from presift.orchestrator.api.grpc.requests import explain_request_from_wire, request_from_wire
from presift.orchestrator.api.grpc.responses import event_to_wire, explanation_to_wire
from presift.orchestrator.api.http.body import aside, body_of, json_object
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.completions import CHAT, TEXT, Answer, Shape
from presift.orchestrator.api.http.errors import HEADER, in_header
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.parameters import brief, carried_out
from presift.orchestrator.api.http.requests import explain_request, generate_request
from presift.orchestrator.api.http.schema import MAX_TIMEOUT_S, ChatAsked, TextAsked, parsed
from presift.orchestrator.api.http.sse import Reply, as_json
from presift.orchestrator.pipeline.events import Event
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.explain import Detail
from presift.rpc.deadline import Deadline
from presift.v1 import orchestrator_pb2

TIMEOUT_KEY = "presift-timeout-s"
AnyAsked = ChatAsked | TextAsked


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every request: the largest body, new tokens where no number is named, the deployment's salt."""

    max_body_bytes: int
    max_new_tokens: int
    salt: str = ""
    explains: bool = True


class Asking:
    """/v1/chat/completions and /v1/completions."""

    def __init__(self, pipeline: Pipeline, models: ServedModels, terms: Terms) -> None:
        self._pipeline = pipeline
        self._models = models
        self._terms = terms

    async def chat(self, call: Call) -> None:
        await self._ask(call, ChatAsked, CHAT)

    async def complete(self, call: Call) -> None:
        await self._ask(call, TextAsked, TEXT)

    async def _ask(self, call: Call, kind: type[AnyAsked], shape: Shape) -> None:
        clock = asyncio.get_running_loop().time
        arrived_s = clock()
        raw = await body_of(call.headers, call.receive, self._terms.max_body_bytes)
        asked = await aside(len(raw), lambda: parsed(kind, carried_out(json_object(raw))))
        target = self._models.named(asked.model)
        answer = Answer(shape, target.id, target.revision, shows_ids=asked.presift.token_ids)
        timeout_s = _timeout_s(call, asked)
        # The deadline counts from the first header on, as gRPC's does.
        left_s = None if timeout_s is None else timeout_s - (clock() - arrived_s)
        try:
            async with call.presence.watched(), asyncio.timeout(left_s) as deadline:
                await self._answer(call, asked, answer, left_s, len(raw))
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded("the deadline passed") from None

    async def _answer(self, call: Call, asked: AnyAsked, answer: Answer, left_s: float | None, size: int) -> None:
        message = await aside(size, lambda: generate_request(asked, self._terms.max_new_tokens))
        if asked.presift.explain is not None:
            question = await aside(size, lambda: explain_request(message, asked))
            await self._explain(call, question, answer, left_s, is_stream=asked.stream)
            return
        if asked.stream_options is not None and not asked.stream:
            raise InvalidRequest("stream_options", "given", "left out, unless stream is true")
        request = (await aside(size, lambda: request_from_wire(message))).of(call.caller, self._terms.salt)
        async with aclosing(self._pipeline.generate(request, Deadline.within(left_s))) as events:
            if asked.stream:
                has_usage = asked.stream_options is not None and asked.stream_options.include_usage
                await _stream(events, answer, call.reply, has_usage)
            else:
                await _gather(events, answer, call.reply)

    async def _explain(
        self,
        call: Call,
        message: orchestrator_pb2.ExplainRequest,
        answer: Answer,
        left_s: float | None,
        *,
        is_stream: bool,
    ) -> None:
        if not self._terms.explains:
            raise PermissionDenied("Explain is switched off here (--no-explain)")
        if is_stream:
            raise InvalidRequest("stream", True, "false with presift.explain")
        request = (await asyncio.to_thread(explain_request_from_wire, message)).of(call.caller, self._terms.salt)
        detail = Detail(kv_mask=message.include_kv_mask, span_per_token=message.span_per_token)
        explanation = await self._pipeline.explain(request, detail, Deadline.within(left_s))
        # A span of every token takes a while: others stream meanwhile.
        told = await asyncio.to_thread(explanation_to_wire, explanation)
        raw = await asyncio.to_thread(lambda: as_json(answer.explained(told)))
        await call.reply.whole(200, raw, {HEADER: in_header(told.decision)})


async def _gather(events: AsyncGenerator[Event, None], answer: Answer, reply: Reply) -> None:
    decision, usage = event_to_wire(await anext(events)).decision, orchestrator_pb2.Usage()
    async for event in events:
        wire = event_to_wire(event)
        if wire.HasField("usage"):
            usage = wire.usage
        else:
            answer.hear(wire.delta)
    # Only now: what the call held of its tenant's limits is given back before its caller can ask again.
    await reply.json(200, answer.whole(decision, usage), {HEADER: in_header(decision)})


async def _stream(events: AsyncGenerator[Event, None], answer: Answer, reply: Reply, has_usage: bool) -> None:
    async with reply.events():
        decision, usage = event_to_wire(await anext(events)).decision, orchestrator_pb2.Usage()
        if not reply.has_header(HEADER, in_header(decision)):
            await reply.event(answer.opening(decision, has_usage=has_usage))
        async for event in events:
            wire = event_to_wire(event)
            if wire.HasField("usage"):
                usage = wire.usage
            elif wire.delta.text or (answer.shows_ids and wire.delta.token_ids):
                await reply.event(answer.chunk(wire.delta, has_usage=has_usage))
        for end in answer.ends(decision, usage, has_usage=has_usage):
            await reply.event(end)
        await reply.end()


def _timeout_s(call: Call, asked: AnyAsked) -> float | None:
    """Seconds that the caller gives it: the shorter of what the body and the header say."""
    said = call.headers.get(TIMEOUT_KEY)
    given = [] if asked.presift.timeout_s is None else [asked.presift.timeout_s]
    if said is not None:
        try:
            given.append(float(said))
        except ValueError:
            raise InvalidRequest(TIMEOUT_KEY, brief(said), "a number of seconds") from None
        if not 0.0 < given[-1] <= MAX_TIMEOUT_S:
            raise InvalidRequest(TIMEOUT_KEY, brief(said), f"0 < seconds <= {MAX_TIMEOUT_S}")
    return min(given, default=None)
