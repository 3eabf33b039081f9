"""Requests from protobuf messages. Every function raises InvalidRequest, which names the field of the message."""

from __future__ import annotations

from presift.core.answer import AnswerFormat
from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.core.limits import SAMPLING, check_limits
from presift.orchestrator.api.grpc.enums import KV_LOOKAHEADS
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.limits import CHAT, SPANS, TEXT, TOKEN_IDS
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
from presift.orchestrator.prompt.chat_tools import read_document_marks
from presift.rpc import answer_codec, codec
from presift.v1 import orchestrator_pb2, target_pb2

_MESSAGES = "prompt.chat.messages"
_KV_NUMBERS = ("lookahead_tokens", "continue_prompt_tokens", "renew_every", "renew_window", "first_full_tokens")


def request_from_wire(message: orchestrator_pb2.GenerateRequest, caller: Caller, deployment_salt: str) -> Request:
    """The caller's request."""
    check_prompt(message.prompt)
    check_limits(message, SAMPLING)
    sampling, prompt = sampling_from_wire(message.sampling), prompt_from_wire(message.prompt)
    return _request(
        message,
        prompt,
        sampling,
        caller,
        deployment_salt,
        choices=message.choices if message.HasField("choices") else 1,
        answer_format=_answer_format(message, prompt),
        has_default_length=not message.sampling.HasField("max_new_tokens"),
        migrate=message.migrate,
    )


def _answer_format(message: orchestrator_pb2.GenerateRequest, prompt: Prompt) -> AnswerFormat:
    """What is separated from the answer's text, and whether it must call tools."""
    choice, is_chat = answer_codec.tool_choice_from_wire(message.tool_choice), isinstance(prompt, Chat)
    tools = prompt.tools_json if isinstance(prompt, Chat) else ()
    wanted = AnswerFormat(tools, choice, message.tool_function, message.single_tool_call, separate_reasoning=is_chat)
    if not message.raw_text:
        return wanted
    if wanted.forces_call:
        raise InvalidRequest("raw_text", True, f"unset with tool_choice {choice}")
    return AnswerFormat()


def explain_request_from_wire(
    message: orchestrator_pb2.ExplainRequest, caller: Caller, deployment_salt: str
) -> Request:
    """The caller's request, which is to be explained."""
    check_prompt(message.prompt)
    max_new_tokens = message.max_new_tokens if message.HasField("max_new_tokens") else None
    sampling = sampling_from_wire(target_pb2.Sampling(max_new_tokens=max_new_tokens))
    prompt, has_default_length = prompt_from_wire(message.prompt), max_new_tokens is None
    return _request(message, prompt, sampling, caller, deployment_salt, has_default_length=has_default_length)


def _request(
    message: orchestrator_pb2.GenerateRequest | orchestrator_pb2.ExplainRequest,
    prompt: Prompt,
    sampling: Sampling,
    caller: Caller,
    deployment_salt: str,
    *,
    has_default_length: bool,
    choices: int = 1,
    answer_format: AnswerFormat | None = None,
    migrate: bool = False,
) -> Request:
    return Request(
        prompt=prompt,
        route=codec.route_from_wire(message.route),
        budget=budget_from_wire(message.budget),
        sampling=sampling,
        kv=kv_options_from_wire(message.kv),
        tenant=caller.tenant,
        salt=caller.salt(deployment_salt),
        limits=caller.limits,
        choices=choices,
        answer_format=answer_format,
        has_default_length=has_default_length,
        migrate=migrate,
    )


def check_prompt(prompt: orchestrator_pb2.Prompt) -> None:
    """Raise InvalidRequest if the prompt holds more than one request may, before anything is built from it."""
    check_limits(prompt.token_ids.ids, TOKEN_IDS)
    check_limits(prompt.protected_spans, SPANS)
    check_limits(prompt.text, TEXT)
    if prompt.HasField("chat"):
        check_limits(prompt.chat, CHAT)


def prompt_from_wire(prompt: orchestrator_pb2.Prompt) -> Prompt:
    kind = prompt.WhichOneof("prompt")
    if kind == "token_ids":
        return TokenIds(codec.token_ids_from_wire(prompt.token_ids.ids), codec.spans_from_wire(prompt.protected_spans))
    if prompt.protected_spans:
        raise InvalidRequest("prompt.protected_spans", f"set on a {kind} prompt", "set on token_ids prompts only")
    if kind == "text":
        return Text(prompt.text)
    if kind == "chat":
        messages = tuple(_message(message, at) for at, message in enumerate(prompt.chat.messages))
        chat = prompt.chat
        tools, documents = read_document_marks(chat.tools_json)
        return Chat(
            messages,
            tools,
            chat.template_kwargs_json,
            chat.continue_final_message,
            document_tools=documents,
        )
    raise InvalidRequest("prompt", "unset", "one of text, chat, token_ids")


def _message(message: orchestrator_pb2.Message, number: int) -> Message:
    parts = tuple(_part(part, f"[{number}].parts[{at}]") for at, part in enumerate(message.parts))
    tool_calls = tuple(message.tool_calls_json)
    names = message.name, message.tool_call_id
    try:
        return Message(message.role, parts, message.protected, tool_calls, *names, message.reasoning)
    except InvalidRequest as error:  # the domain's message does not know its number
        field = error.field.replace(_MESSAGES, f"{_MESSAGES}[{number}]", 1)
        raise InvalidRequest(field, error.value, error.limit) from None


def _part(part: orchestrator_pb2.TextPart, place: str) -> TextPart:
    if part.document and part.protected:
        raise InvalidRequest(f"{_MESSAGES}{place}", "document and protected", "one of them")
    return TextPart(part.text, part.protected, part.document)


def budget_from_wire(budget: orchestrator_pb2.Budget) -> Budget:
    names = ("max_prompt_tokens", "max_kv_tokens", "compress_above_tokens", "max_ttft_ms", "min_coverage")
    auto = auto_from_wire(budget.auto_capacity) if budget.HasField("auto_capacity") else None
    return Budget(strict=budget.strict, auto_capacity=auto, **codec.set_fields(budget, *names))


def auto_from_wire(auto: orchestrator_pb2.AutoCapacity) -> AutoCapacity:
    """A bound of 0 takes the default."""
    return AutoCapacity(auto.coverage, auto.min_tokens or None, auto.max_tokens or None)


def sampling_from_wire(sampling: target_pb2.Sampling) -> Sampling:
    if sampling.HasField("max_new_tokens") and sampling.max_new_tokens == 0:
        raise InvalidRequest("sampling.max_new_tokens", 0, ">= 1")
    return answer_codec.sampling_from_wire(sampling)


def kv_options_from_wire(options: orchestrator_pb2.KvOptions) -> KvOptions:
    values = codec.set_fields(options, "keep_full_prefix", *_KV_NUMBERS)
    selection = codec.KV_SELECTIONS.from_wire(options.selection, "kv.selection")
    return KvOptions(
        selection=selection, lookahead=KV_LOOKAHEADS.from_wire(options.lookahead, "kv.lookahead"), **values
    )
