"""What the endpoints of other APIs have in common: their bodies are translated to a chat's, and answered as one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from presift.orchestrator.api.http.answering import Renderer, timeout_from
from presift.orchestrator.api.http.answers import Answers, ReadPrompt
from presift.orchestrator.api.http.body import in_thread_if_large, parse_json_object, read_body
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.endpoints import CompletionEndpoints, asked_of
from presift.orchestrator.api.http.presift_json import answers_presift, explained_presift
from presift.orchestrator.api.http.requests import request_from_body, without_effect
from presift.orchestrator.api.http.sampling_values import parameter_names
from presift.orchestrator.api.http.schema import ChatBody, Ignored, validate
from presift.orchestrator.api.http.translation import Translated
from presift.orchestrator.api.http.unsupported import supported_parameters
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.request import Request
from presift.orchestrator.pipeline.events import Report
from presift.orchestrator.planning.explain import Explanation
from presift.rpc.deadline import NO_DEADLINE, Deadline


@dataclass(frozen=True, slots=True)
class ReadBody:
    """A body as a chat's: `size` in bytes, and when its request arrived (`time.monotonic`)."""

    given: dict[str, Any]
    size: int
    arrived_s: float
    ignored: Ignored = field(default_factory=dict)


class ChatAdapter:
    """Reads and answers calls of other APIs with what the chat's endpoint uses."""

    def __init__(self, completions: CompletionEndpoints) -> None:
        self._completions = completions
        self._options = completions.options
        self._models = completions.models

    async def read(self, call: Call) -> ReadBody:
        """Raises PresiftError. An unknown model is reported before an invalid parameter."""
        arrived_s = time.monotonic()
        raw = await read_body(call.headers, call.receive, self._options.max_body_bytes)
        given = await in_thread_if_large(len(raw), lambda: parse_json_object(raw))
        if isinstance(model := given.get("model"), str):
            self._models.find(model)
        return ReadBody(given, len(raw), arrived_s)

    async def answer(
        self,
        call: Call,
        read: ReadBody,
        translate: Callable[[ReadBody], Translated],
        renderer: Callable[[View], Renderer],
    ) -> None:
        """Answer a call; `translate` raises InvalidRequest with the caller's own names."""
        chat = await in_thread_if_large(read.size, lambda: chat_body(call, translate(read), read.ignored))
        timeout_s = timeout_from(call.headers, chat.presift.timeout_s)
        # The deadline counts from the end of the headers.
        deadline = NO_DEADLINE if timeout_s is None else Deadline(read.arrived_s + timeout_s)
        answering = self._completions.answering
        async with answering.until(deadline, call.client):
            request = await in_thread_if_large(read.size, lambda: self.request(call, chat))
            self._note_ignored(call, read, chat)
            asked = asked_of(chat, (request,), renderer(self._view(chat, read.ignored)))
            await answering.answer(call.reply, asked, deadline)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._completions.pipeline.parts.tokenizer.backend

    @property
    def template_variables(self) -> frozenset[str]:
        return self._completions.template_variables

    @property
    def context_tokens(self) -> int:
        return self._completions.pipeline.target_info().model.context_tokens

    def held(self, caller: Caller) -> AbstractAsyncContextManager[object]:
        """Count a call among its tenant's, until the block ends."""
        return self._completions.pipeline.parts.quotas.held(caller.tenant, caller.limits)

    async def tokenize(
        self, call: Call, read: ReadBody, translate: Callable[[ReadBody], Translated]
    ) -> NDArray[np.uint32]:
        """The tokens of the prompt that a call would have answered."""
        chat = await in_thread_if_large(read.size, lambda: chat_body(call, translate(read), read.ignored))
        async with call.client.cancels_on_disconnect():
            request = await in_thread_if_large(read.size, lambda: self.request(call, chat))
            self._note_ignored(call, read, chat)
            return (await self._completions.pipeline.read(request)).ids

    def _note_ignored(self, call: Call, read: ReadBody, chat: ChatBody) -> None:
        for name in without_effect(chat, self.template_variables):
            read.ignored[name if call.reply.names is None else call.reply.names.parameter(name)] = None

    def request(self, call: Call, chat: ChatBody) -> Request:
        options, template = self._options, self._completions.template_variables
        return request_from_body(chat, options.max_new_tokens, call.caller, options.salt, template)

    def _view(self, chat: ChatBody, ignored: Ignored) -> View:
        target = self._models.find(chat.model or "")
        return View(target.id, target.revision, ignored=tuple(ignored))


def chat_body(call: Call, translated: Translated, ignored: Ignored) -> ChatBody:
    """The chat's body, validated. From here on errors name the caller's parameters by `translated.names`."""
    call.reply.names = translated.names
    given = supported_parameters(translated.given, ChatBody.model_fields, ignored)
    chat = validate(ChatBody, given, ignored)
    call.reply.names = translated.names.with_spellings(parameter_names(chat))
    return chat


class SingleAnswer:
    """The parts that renderers of one answer share."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.answers = Answers([ReadPrompt()], 1)

    @property
    def report(self) -> Report:
        return next(self.answers.reports)

    def presift(self) -> dict[str, Any]:
        return answers_presift([self.report], self.view.ignored)

    def explained_presift(self, explanation: Explanation) -> dict[str, Any]:
        return explained_presift(explanation, self.view.ignored)
