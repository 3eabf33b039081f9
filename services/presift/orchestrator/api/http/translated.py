"""What the endpoints of other APIs have in common: their bodies are translated to a chat's, and answered as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from presift.orchestrator.admission.request_cost import tokenizing_cost
from presift.orchestrator.api.http.answering import Renderer
from presift.orchestrator.api.http.answers import Answers, ReadPrompt
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.endpoints import CompletionEndpoints, asked_of
from presift.orchestrator.api.http.presift_json import presift_of_answers
from presift.orchestrator.api.http.reading import ReadBody, read_call
from presift.orchestrator.api.http.requests import request_from_body, without_effect
from presift.orchestrator.api.http.sampling_values import parameter_names
from presift.orchestrator.api.http.schema import ChatBody, Ignored, add_ignored, validate
from presift.orchestrator.api.http.segments import Change, Segments
from presift.orchestrator.api.http.translation import Translated
from presift.orchestrator.api.http.unsupported import supported_parameters
from presift.orchestrator.api.http.wire_format import WireFormat
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.request import Request
from presift.orchestrator.pipeline.events import Delta, Event, Report
from presift.rpc.large_input import in_thread_if_large


@dataclass(frozen=True, slots=True)
class TranslatedCall:
    """The body of another API as a chat's, and what makes the renderer of its answer."""

    chat: Translated
    renderer: Callable[[View], SingleAnswer]


class ChatAdapter:
    """Reads and answers calls of other APIs with what the chat's endpoint uses."""

    def __init__(self, completions: CompletionEndpoints) -> None:
        self._completions = completions
        self._options = completions.options
        self._models = completions.models

    async def read(self, call: Call) -> ReadBody:
        """Raises PresiftError."""
        return await read_call(call, self._models, self._options.max_body_bytes)

    async def answer(self, call: Call, read: ReadBody, translate: Callable[[ReadBody], TranslatedCall]) -> None:
        """Answer a call; `translate` raises InvalidRequest with the caller's own names."""

        def read_chat() -> tuple[ChatBody, TranslatedCall]:
            translated = translate(read)
            return chat_body(call, translated.chat, read.ignored), translated

        chat, translated = await in_thread_if_large(read.size, read_chat)
        deadline = read.deadline(call.headers, chat.presift.timeout_s)
        answering = self._completions.answering
        async with answering.until(deadline, call.client):
            request = await in_thread_if_large(read.size, lambda: self.request(call, chat))
            self._add_without_effect(call, read, chat)
            renderer = translated.renderer(self._view(chat, read.ignored))
            call.reply.format = renderer.wire_format
            asked = asked_of(chat, (request,), renderer)
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

    async def in_tokenizer(self, caller: Caller, work: Callable[[], bytes], size: int) -> bytes:
        """What `work` makes of `size` bytes of text, or of as many token ids, in a thread; with the limits that prompts
        have too. Raises Overloaded."""
        pipeline = self._completions.pipeline
        async with pipeline.tokenizing(caller.tenant, caller.limits, tokenizing_cost(size)):
            return await pipeline.parts.tokenizer.limit.run(work, size)

    async def tokenize(
        self, call: Call, read: ReadBody, translate: Callable[[ReadBody], Translated]
    ) -> NDArray[np.uint32]:
        """The tokens of the prompt that a call would have answered."""
        chat = await in_thread_if_large(read.size, lambda: chat_body(call, translate(read), read.ignored))
        async with call.client.cancels_on_disconnect():
            request = await in_thread_if_large(read.size, lambda: self.request(call, chat))
            self._add_without_effect(call, read, chat)
            return (await self._completions.pipeline.read(request)).ids

    def _add_without_effect(self, call: Call, read: ReadBody, chat: ChatBody) -> None:
        for name in without_effect(chat, self.template_variables):
            add_ignored(read.ignored, name if call.reply.names is None else call.reply.names.parameter(name))

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


class SingleAnswer(Renderer):
    """What renderers of one answer share: its text comes in segments."""

    # The last events of a stream have the answer's text, or depend on it.
    keeps_stream = True

    def __init__(self, view: View) -> None:
        self.view = view
        self.answers = Answers([ReadPrompt()], 1)
        self.segments = Segments()

    @property
    @abstractmethod
    def wire_format(self) -> WireFormat:
        """How this answer's events and errors are written."""

    def add(self, prompt: int, event: Event) -> None:
        self.answers.add(prompt, event)
        if isinstance(event, Delta):
            self._read(self.segments.push(event))

    def finish(self, *, needs_text: bool = False) -> None:
        """End the segments, when all events were added. With `needs_text` an answer without one gets
        an empty text."""
        self._read(self.segments.finish(needs_text=needs_text))

    def _read(self, changes: Iterable[Change]) -> None:
        """Segments are written as their changes are read."""
        for _ in changes:
            pass

    @property
    def report(self) -> Report:
        return next(self.answers.reports)

    def presift(self) -> dict[str, Any]:
        return presift_of_answers([self.report], self.view.ignored)
