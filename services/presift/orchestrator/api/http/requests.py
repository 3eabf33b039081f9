"""OpenAI's requests as the messages that gRPC callers send: from here on both go one way, and are checked as one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_PROMPT_TOKENS
from presift.orchestrator.api.http.options import budget_of, kv_of, route_of, sampling_of, spans_of
from presift.orchestrator.api.http.parameters import brief
from presift.orchestrator.api.http.schema import Asked, ChatAsked, Message, Place, TextAsked
from presift.orchestrator.domain.limits import MAX_PARTS
from presift.v1 import orchestrator_pb2, target_pb2

# What OpenAI documents for a caller who leaves it out.
_TEMPERATURE = 1.0
_ROLES = {"developer": "system"}


def generate_request(asked: ChatAsked | TextAsked, max_new_tokens: int) -> orchestrator_pb2.GenerateRequest:
    """`max_new_tokens` where the caller names no number. Raises InvalidRequest, naming the parameter."""
    prompt = _chat(asked) if isinstance(asked, ChatAsked) else _completion(asked)
    prompt.protected_spans.extend(spans_of(asked.presift))
    return orchestrator_pb2.GenerateRequest(
        prompt=prompt,
        sampling=_sampling(asked, max_new_tokens),
        budget=budget_of(asked.presift),
        route=route_of(asked.presift),  # type: ignore[arg-type]  # a number, as on the wire
        kv=kv_of(asked.presift),
    )


def explain_request(request: orchestrator_pb2.GenerateRequest, asked: Asked) -> orchestrator_pb2.ExplainRequest:
    """The same question, to be explained."""
    explain = asked.presift.explain
    return orchestrator_pb2.ExplainRequest(
        prompt=request.prompt,
        budget=request.budget,
        route=request.route,
        kv=request.kv,
        include_kv_mask=explain is not None and explain.include_kv_mask,
        span_per_token=explain is not None and explain.span_per_token,
        max_new_tokens=request.sampling.max_new_tokens,
    )


def _chat(asked: ChatAsked) -> orchestrator_pb2.Prompt:
    if (parts := sum(len(message.content or ()) for message in asked.messages)) > MAX_PARTS:
        raise InvalidRequest("messages.content", f"{parts} parts", f"at most {MAX_PARTS}")
    messages = [_message(message, at) for at, message in enumerate(asked.messages)]
    # With "none" the model is not to call any: it is not told of them.
    tools = () if asked.tool_choice == "none" else asked.tools or ()
    tools_json = [_tool(tool, at) for at, tool in enumerate(tools)]
    _mark(messages, asked.presift.protected, "protected")
    _mark(messages, asked.presift.documents, "document")
    return orchestrator_pb2.Prompt(chat=orchestrator_pb2.Chat(messages=messages, tools_json=tools_json))


def _message(message: Message, at: int) -> orchestrator_pb2.Message:
    if message.content is None and not message.tool_calls:
        raise InvalidRequest(f"messages[{at}].content", "missing", "given: only a message with tool_calls has none")
    parts = message.content or ()
    return orchestrator_pb2.Message(
        role=_ROLES.get(message.role, message.role),
        parts=[
            orchestrator_pb2.TextPart(text=part.text, protected=part.protected, document=part.document)
            for part in parts
        ],
        protected=message.protected,
        tool_calls_json=[_json(call, f"messages[{at}].tool_calls") for call in message.tool_calls or ()],
        name=message.name or "",
        tool_call_id=message.tool_call_id or "",
    )


def _tool(tool: dict[str, Any], at: int) -> str:
    if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        kind = brief(tool.get("type"))
        raise InvalidRequest(f"tools[{at}].type", kind, "'function', with the definition in \"function\"")
    return _json(tool, f"tools[{at}]")


def _json(value: dict[str, Any], where: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise InvalidRequest(where, "a number that JSON has not", "JSON") from None


def _mark(messages: list[orchestrator_pb2.Message], places: Iterable[Place], mark: str) -> None:
    """Set `mark` on the parts at `places`; what is marked is held against its limits where all is."""
    name = f"presift.{mark if mark == 'protected' else 'documents'}"
    # A place may be named often, and be a message of many parts: each is gone to once.
    for number, part in {_found(messages, place, f"{name}[{at}]") for at, place in enumerate(places)}:
        parts = messages[number].parts
        for each in parts if part is None else [parts[part]]:
            setattr(each, mark, True)


def _found(messages: list[orchestrator_pb2.Message], place: Place, where: str) -> tuple[int, int | None]:
    if not -len(messages) <= place.message < len(messages):
        raise InvalidRequest(f"{where}.message", brief(place.message), f"the number of one of {len(messages)}")
    parts = messages[place.message].parts
    if place.part is not None and place.part >= len(parts):
        raise InvalidRequest(f"{where}.part", brief(place.part), f"the number of one of {len(parts)}")
    return place.message % len(messages), place.part


def _completion(asked: TextAsked) -> orchestrator_pb2.Prompt:
    if asked.presift.protected or asked.presift.documents:
        raise InvalidRequest("presift.protected", "given", "left out: parts are those of messages")
    prompt = asked.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str):
        return orchestrator_pb2.Prompt(text=prompt)
    if isinstance(prompt, list) and len(prompt) > MAX_PROMPT_TOKENS:
        raise InvalidRequest("prompt", f"{len(prompt)} tokens", f"at most {MAX_PROMPT_TOKENS}")
    if isinstance(prompt, list) and all(type(each) is int and 0 <= each < 2**32 for each in prompt):
        return orchestrator_pb2.Prompt(token_ids=orchestrator_pb2.TokenIds(ids=prompt))
    value = f"a list of {len(prompt)}" if isinstance(prompt, list) else brief(prompt)
    raise InvalidRequest("prompt", value, "one text, or one list of token ids")


def _sampling(asked: ChatAsked | TextAsked, max_new_tokens: int) -> target_pb2.Sampling:
    if asked.seed is not None and not 0 <= asked.seed < 2**64:
        raise InvalidRequest("seed", brief(asked.seed), "0 <= seed < 2**64")
    named = _max_tokens(asked)
    made = sampling_of(asked.presift)
    made.max_new_tokens = max_new_tokens if named is None else named
    made.temperature = _TEMPERATURE if asked.temperature is None else asked.temperature
    made.stop.extend(asked.stop or ())
    for name in ("top_p", "seed"):
        if (value := getattr(asked, name)) is not None:
            setattr(made, name, value)
    return made


def _max_tokens(asked: ChatAsked | TextAsked) -> int | None:
    newer = asked.max_completion_tokens if isinstance(asked, ChatAsked) else None
    if newer is not None and asked.max_tokens not in (None, newer):
        raise InvalidRequest("max_tokens", asked.max_tokens, f"left out, or max_completion_tokens ({newer})")
    named = asked.max_tokens if newer is None else newer
    if named is not None and named >= 2**32:
        raise InvalidRequest("max_tokens", brief(named), "< 2**32")
    return named
