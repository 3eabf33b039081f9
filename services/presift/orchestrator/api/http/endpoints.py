"""/v1/chat/completions and /v1/completions: an OpenAI request in, the pipeline's events out."""

from __future__ import annotations

from dataclasses import dataclass

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.answering import Answering, Asked, Renderer
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.chat_completions import ChatCompletion
from presift.orchestrator.api.http.completions import View
from presift.orchestrator.api.http.fill_in import with_suffix_in_prompt
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.reading import ReadBody, read_call
from presift.orchestrator.api.http.requests import requests_from_body, without_effect
from presift.orchestrator.api.http.sampling_values import parameter_names
from presift.orchestrator.api.http.schema import (
    Body,
    ChatBody,
    CompletionBody,
    Ignored,
    StreamOptions,
    add_ignored,
    validate,
)
from presift.orchestrator.api.http.text_completions import TextCompletion
from presift.orchestrator.api.http.unsupported import supported_parameters
from presift.orchestrator.domain.request import Request
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.explain import Detail
from presift.orchestrator.prompt.token_texts import TokenTexts
from presift.rpc.large_input import in_thread_if_large

# Making one request of a batch takes as long as reading so many bytes.
_REQUEST_BYTES = 128


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
        self.pipeline = pipeline
        self.models = models
        self.options = options
        self.answering = Answering(pipeline, explains=options.explains)
        self._texts = TokenTexts(pipeline.parts.tokenizer.backend)

    @property
    def template_variables(self) -> frozenset[str]:
        """What the target's chat template reads."""
        return self.pipeline.parts.tokenizer.template_variables

    async def chat(self, call: Call) -> None:
        await self._complete(call, ChatBody, ChatCompletion)

    async def text(self, call: Call) -> None:
        await self._complete(call, CompletionBody, TextCompletion)

    async def _complete(
        self, call: Call, schema: type[Body], renderer: type[ChatCompletion] | type[TextCompletion]
    ) -> None:
        options = self.options
        read = await read_call(call, self.models, options.max_body_bytes)
        body = await in_thread_if_large(read.size, lambda: self._validated(schema, read))
        call.reply.names = parameter_names(body)
        deadline = read.deadline(call.headers, body.presift.timeout_s)
        async with self.answering.until(deadline, call.client):
            template = self.template_variables
            requests = await in_thread_if_large(
                read.size + _REQUEST_BYTES * _prompts_in(body),
                lambda: requests_from_body(body, options.max_new_tokens, call.caller, options.salt, template),
            )
            for name in without_effect(body, template):
                add_ignored(read.ignored, name)
            view = self._view(body, len(requests), read.ignored)
            await self.answering.answer(call.reply, asked_of(body, requests, renderer(view, self._texts)), deadline)

    def _validated(self, schema: type[Body], read: ReadBody) -> Body:
        given = supported_parameters(read.given, schema.model_fields, read.ignored)
        body = validate(schema, given, read.ignored)
        if isinstance(body, CompletionBody):
            return with_suffix_in_prompt(body, self.pipeline.parts.tokenizer.backend)
        return body

    def _view(self, body: Body, prompts: int, ignored: Ignored) -> View:
        """What the caller sees of its answers. Raises HttpError for an unknown model."""
        target = self.pipeline.target_info().model if body.model is None else self.models.find(body.model)
        streamed = body.stream_options if body.stream and body.stream_options is not None else StreamOptions()
        is_text, keeps_special = isinstance(body, CompletionBody), body.presift.sampling.keep_special_tokens
        echo = isinstance(body, CompletionBody) and body.echo
        logprobs = body.logprobs is not None if is_text else bool(body.logprobs)
        return View(
            target.id,
            target.revision,
            prompts,
            body.n,
            token_ids=body.presift.token_ids or body.return_token_ids,
            prompt_ids=body.return_prompt_token_ids or body.return_token_ids,
            usage=streamed.include_usage,
            usage_in_chunks=streamed.continuous_usage_stats,
            logprobs=logprobs,
            prompt_logprobs=echo and logprobs,
            special_tokens=not body.skip_special_tokens if keeps_special is None else keeps_special,
            reasoning_in_chunks=body.stream_reasoning if isinstance(body, ChatBody) else True,
            echo=echo,
            no_answer=is_text and body.max_tokens == 0,
            ignored=tuple(ignored),
        )


def _prompts_in(body: Body) -> int:
    """The number of prompts of a batch, else 0."""
    return len(body.prompt) if isinstance(body, CompletionBody) and body.is_batch else 0


def asked_of(body: Body, requests: tuple[Request, ...], renderer: Renderer) -> Asked:
    """Raises InvalidRequest for an explanation that cannot be given."""
    options = body.presift.explain
    if options is None:
        return Asked(requests, renderer, body.stream)
    if body.stream:
        raise InvalidRequest("stream", True, "false with presift.explain")
    if len(requests) > 1:
        raise InvalidRequest("prompt", f"a list of {len(requests)}", "one prompt with presift.explain")
    detail = Detail(kv_mask=options.include_kv_mask, span_per_token=options.span_per_token)
    return Asked(requests, renderer, explain=detail)
