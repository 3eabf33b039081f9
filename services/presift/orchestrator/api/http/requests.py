"""The domain's request from a validated body. Raises InvalidRequest with a field of the domain or a parameter."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.core.limits import SAMPLING, check_limits
from presift.core.spans import Span
from presift.orchestrator.api.http import schema
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.schema import Body, ChatBody, CompletionBody, PartReference, PresiftOptions
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.limits import CHAT, MAX_PARTS, TEXT, TOKEN_IDS
from presift.orchestrator.domain.request import (
    AutoCapacity,
    Budget,
    Chat,
    KvOptions,
    Message,
    Prompt,
    Request,
    Text,
    TextPart,
    TokenIds,
)

# OpenAI's documented default.
_TEMPERATURE = 1.0
_ROLES = {"developer": "system"}
# The parts of a chat that a body refers to: (message, part); part None is all of them.
_Places = Set[tuple[int, int | None]]


def request_from_body(body: Body, max_new_tokens: int, caller: Caller, deployment_salt: str) -> Request:
    """The caller's request. `max_new_tokens` counts if the body names no number."""
    options = body.presift
    request = Request(
        prompt=_chat(body) if isinstance(body, ChatBody) else _completion(body),
        route=options.route,
        budget=_budget(options),
        sampling=_sampling(body, max_new_tokens),
        kv=KvOptions(**dict(options.kv)),
        tenant=caller.tenant,
        salt=caller.salt(deployment_salt),
        limits=caller.limits,
    )
    check_limits(request, SAMPLING)
    return request


def parameter_names(body: Body) -> ParameterNames:
    """How this body spells the fields of its request."""
    if isinstance(body, CompletionBody):
        return ParameterNames()
    is_newer = body.max_completion_tokens is not None
    return ParameterNames("messages", "max_completion_tokens" if is_newer else "max_tokens")


def _chat(body: ChatBody) -> Chat:
    _check_no_spans(body.presift, "chat")
    if (parts := sum(len(message.content or ()) for message in body.messages)) > MAX_PARTS:
        raise InvalidRequest("prompt.chat.messages.parts", f"{parts} parts", f"at most {MAX_PARTS}")
    protected = _places(body.messages, body.presift.protected, "presift.protected")
    documents = _places(body.messages, body.presift.documents, "presift.documents")
    messages = tuple(_message(message, at, protected, documents) for at, message in enumerate(body.messages))
    # With "none" the model must not call tools: the prompt leaves them out.
    tools = () if body.tool_choice == "none" else body.tools or ()
    chat = Chat(messages, tuple(_tool(tool, at) for at, tool in enumerate(tools)))
    check_limits(chat, CHAT)
    return chat


def _message(message: schema.Message, at: int, protected: _Places, documents: _Places) -> Message:
    place = f"messages[{at}]"
    if message.content is None and not message.tool_calls:
        raise InvalidRequest(f"{place}.content", "missing", "given: only a message with tool_calls may omit it")
    parts = []
    for number, part in enumerate(message.content or ()):
        marks = {(at, None), (at, number)}
        is_protected = part.protected or not marks.isdisjoint(protected)
        is_document = part.document or not marks.isdisjoint(documents)
        if is_protected and is_document:
            raise InvalidRequest(f"{place}.content[{number}]", "document and protected", "one of them")
        parts.append(TextPart(part.text, is_protected, is_document))
    role, name, call_id = _ROLES.get(message.role, message.role), message.name or "", message.tool_call_id or ""
    tool_calls = tuple(_json(call, f"{place}.tool_calls") for call in message.tool_calls or ())
    try:
        return Message(role, tuple(parts), message.protected, tool_calls, name, call_id)
    except InvalidRequest as error:  # the domain's message does not know its number
        parameter = ParameterNames().parameter(error.field, place)
        raise InvalidRequest(parameter, error.value, error.limit) from None


def _tool(tool: dict[str, Any], at: int) -> str:
    if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        kind = brief(tool.get("type"))
        raise InvalidRequest(f"tools[{at}].type", kind, "'function', with the definition in \"function\"")
    return _json(tool, f"tools[{at}]")


def _json(value: dict[str, Any], parameter: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise InvalidRequest(parameter, "a number that JSON does not have", "JSON") from None


def _places(messages: Sequence[schema.Message], references: Sequence[PartReference], parameter: str) -> _Places:
    return {_place(messages, each, f"{parameter}[{at}]") for at, each in enumerate(references)}


def _place(messages: Sequence[schema.Message], reference: PartReference, parameter: str) -> tuple[int, int | None]:
    number, part = reference.message, reference.part
    if not -len(messages) <= number < len(messages):
        raise InvalidRequest(f"{parameter}.message", brief(number), f"the number of one of {len(messages)} messages")
    parts = messages[number].content or ()
    if part is not None and part >= len(parts):
        raise InvalidRequest(f"{parameter}.part", brief(part), f"the number of one of {len(parts)} parts")
    return number % len(messages), part


def _completion(body: CompletionBody) -> Prompt:
    if body.presift.protected or body.presift.documents:
        raise InvalidRequest("presift.protected", "given", "left out: it refers to parts of messages")
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str):
        _check_no_spans(body.presift, "text")
        check_limits(prompt, TEXT)
        return Text(prompt)
    if isinstance(prompt, list):
        return _token_ids(prompt, body.presift)
    raise InvalidRequest("prompt", brief(prompt), "one text, or one list of token ids")


def _token_ids(ids: list[Any], options: PresiftOptions) -> TokenIds:
    check_limits(ids, TOKEN_IDS)
    if not all(type(each) is int and 0 <= each < 2**32 for each in ids):
        raise InvalidRequest("prompt", f"a list of {len(ids)}", "one text, or one list of token ids")
    spans = tuple(Span(span.start, span.end) for span in options.protected_spans)
    return TokenIds(np.array(ids, dtype=np.uint32), spans)


def _check_no_spans(options: PresiftOptions, kind: str) -> None:
    if options.protected_spans:
        raise InvalidRequest("prompt.protected_spans", f"set on a {kind} prompt", "set on token id prompts only")


def _budget(options: PresiftOptions) -> Budget:
    values = dict(options.budget)
    auto = options.budget.auto_capacity
    if auto is not None:  # a bound of 0 takes the default
        values["auto_capacity"] = AutoCapacity(auto.coverage, auto.min_tokens or None, auto.max_tokens or None)
    return Budget(**values)


def _sampling(body: Body, max_new_tokens: int) -> Sampling:
    named, options = _max_new_tokens(body), body.presift.sampling
    return Sampling(
        max_new_tokens=max_new_tokens if named is None else named,
        temperature=_TEMPERATURE if body.temperature is None else body.temperature,
        top_p=body.top_p,
        top_k=options.top_k,
        seed=body.seed,
        stop=tuple(body.stop or ()),
        stop_token_ids=tuple(options.stop_token_ids),
        ignore_eos=options.ignore_eos,
    )


def _max_new_tokens(body: Body) -> int | None:
    newer = body.max_completion_tokens if isinstance(body, ChatBody) else None
    if newer is not None and body.max_tokens not in (None, newer):
        raise InvalidRequest("max_tokens", body.max_tokens, f"left out, or max_completion_tokens ({newer})")
    return body.max_tokens if newer is None else newer
