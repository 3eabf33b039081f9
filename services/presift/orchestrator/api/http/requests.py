"""The domain's requests from a validated body. Raises InvalidRequest with a field of the domain or a parameter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from presift.core.answer import AnswerFormat, ToolChoice
from presift.core.errors import InvalidRequest
from presift.core.limits import SAMPLING, check_limits
from presift.core.spans import Span
from presift.orchestrator.api.http.chat_prompts import chat_prompt, ignored_variables
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.grammars import ignores_response_format
from presift.orchestrator.api.http.sampling_values import max_new_tokens_of, sampling_of
from presift.orchestrator.api.http.schema import Body, ChatBody, CompletionBody, PresiftOptions
from presift.orchestrator.api.http.thinking import knows_effort
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.limits import TEXT, TOKEN_IDS
from presift.orchestrator.domain.request import AutoCapacity, Budget, KvOptions, Prompt, Request, Text, TokenIds

# OpenAI's own limit. Each prompt is a request of its own.
MAX_PROMPTS = 2048


def request_from_body(
    body: Body, max_new_tokens: int, caller: Caller, deployment_salt: str, template: frozenset[str] = frozenset()
) -> Request:
    """The caller's request. `max_new_tokens` counts if the body names no number; `template`: the variables that the
    target's chat template reads. Raises InvalidRequest for several prompts."""
    requests = requests_from_body(body, max_new_tokens, caller, deployment_salt, template)
    if len(requests) > 1:
        raise InvalidRequest("prompt", f"a list of {len(requests)}", "one prompt")
    return requests[0]


def requests_from_body(
    body: Body, max_new_tokens: int, caller: Caller, deployment_salt: str, template: frozenset[str] = frozenset()
) -> tuple[Request, ...]:
    """One request for each prompt, in order."""
    options = body.presift
    if isinstance(body, ChatBody):
        chat = chat_prompt(body, template)
        prompts: tuple[Prompt, ...] = (chat,)
        answer_format: AnswerFormat | None = _answer_format(body, chat.tools_json)
    else:
        prompts, answer_format = _completion_prompts(body), None
    values: dict[str, Any] = {
        "route": options.route,
        "budget": _budget(options),
        "sampling": sampling_of(body, max_new_tokens),
        "kv": KvOptions(**dict(options.kv)),
        "tenant": caller.tenant,
        "salt": caller.salt(deployment_salt),
        "limits": caller.limits,
        "choices": _choices(body),
        "answer_format": answer_format,
        "has_default_length": max_new_tokens_of(body) is None,
        "migrate": options.migrate,
    }
    requests = tuple(Request(prompt=prompt, **values) for prompt in prompts)
    check_limits(requests[0], SAMPLING)
    return requests


def without_effect(body: Body, template: frozenset[str]) -> Iterator[str]:
    """The valid parameters of this body that have no effect."""
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        yield "stream_options.include_obfuscation"
    if ignores_response_format(body):
        yield "response_format"
    if isinstance(body, ChatBody) and not knows_effort(body, template):
        yield "reasoning_effort"
    if isinstance(body, ChatBody) and any(message.name and message.role != "tool" for message in body.messages):
        yield "messages.name"
    if isinstance(body, ChatBody):
        yield from (f"chat_template_kwargs.{name}" for name in ignored_variables(body, template))


def _choices(body: Body) -> int:
    if isinstance(body, CompletionBody) and body.best_of not in (None, body.n):
        limit = f"left out, or n ({body.n}): this server does not rank answers"
        raise InvalidRequest("best_of", brief(body.best_of), limit)
    return body.n


def _answer_format(body: ChatBody, tools: tuple[str, ...]) -> AnswerFormat:
    """What is separated from the answer's text, and whether it must call tools. The prompt shows `tools`."""
    choice, function = ToolChoice.AUTO, ""
    if body.tool_choice == "required":
        choice = ToolChoice.REQUIRED
    elif body.tool_choice is not None and not isinstance(body.tool_choice, str):
        choice, function = ToolChoice.FUNCTION, body.tool_choice.function.name
    if tools and not body.separate_reasoning:
        raise InvalidRequest("separate_reasoning", False, "true with tools")
    single = bool(tools) and not body.parallel_tool_calls
    return AnswerFormat(tools, choice, function, single, separate_reasoning=body.separate_reasoning)


def _completion_prompts(body: CompletionBody) -> tuple[Prompt, ...]:
    if body.presift.protected or body.presift.documents:
        raise InvalidRequest("presift.protected", "given", "left out: it refers to parts of messages")
    prompts = body.prompt if body.is_batch else [body.prompt]
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest("prompt", f"a list of {len(prompts)}", f"at most {MAX_PROMPTS} prompts")
    if len(prompts) > 1 and body.presift.protected_spans:
        raise InvalidRequest("presift.protected_spans", "given", "left out with several prompts")
    if sum(len(each) if isinstance(each, str | list) else 0 for each in prompts) == 0:
        raise InvalidRequest("prompt", "empty", "at least one character or token")
    return tuple(_completion_prompt(each, body.presift) for each in prompts)


def _completion_prompt(prompt: Any, options: PresiftOptions) -> Prompt:
    if isinstance(prompt, str):
        if options.protected_spans:
            raise InvalidRequest("prompt.protected_spans", "set on a text prompt", "set on token id prompts only")
        check_limits(prompt, TEXT)
        return Text(prompt)
    if isinstance(prompt, list):
        return _token_ids(prompt, options)
    raise InvalidRequest("prompt", brief(prompt), "a text, a list of token ids, or a list of texts or of such lists")


def _token_ids(ids: list[Any], options: PresiftOptions) -> TokenIds:
    check_limits(ids, TOKEN_IDS)
    if not all(type(each) is int and 0 <= each < 2**32 for each in ids):
        limit = "a text, a list of token ids, or a list of texts or of such lists"
        raise InvalidRequest("prompt", f"a list of {len(ids)}", limit)
    spans = tuple(Span(span.start, span.end) for span in options.protected_spans)
    return TokenIds(np.array(ids, dtype=np.uint32), spans)


def _budget(options: PresiftOptions) -> Budget:
    values = dict(options.budget)
    auto = options.budget.auto_capacity
    if auto is not None:  # a bound of 0 takes the default
        values["auto_capacity"] = AutoCapacity(auto.coverage, auto.min_tokens or None, auto.max_tokens or None)
    return Budget(**values)
