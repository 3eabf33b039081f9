"""The cost of a request, estimated before tokenization: tokens for fair queueing, bytes for the queue's memory."""

from __future__ import annotations

from dataclasses import dataclass

from presift.orchestrator.domain.request import Chat, Prompt, Request, Text, TokenIds

# English and code have about this many characters per token; fair queueing needs no more than an estimate.
_CHARACTERS_PER_TOKEN = 4
# A waiting request holds what gRPC received, the message parsed from it, and the domain's values.
_BYTES_PER_TOKEN_ID = 16
_COPIES_OF_TEXT = 3
_REQUEST_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class RequestCost:
    """`tokens` to read and to generate, >= 1; `held_bytes` of memory while it is queued."""

    tokens: int
    held_bytes: int


def request_cost(request: Request) -> RequestCost:
    """An estimate; for memory a generous one."""
    tokens, held_bytes = _prompt(request.prompt)
    return RequestCost(max(1, tokens + request.choices * request.sampling.max_new_tokens), _REQUEST_BYTES + held_bytes)


def _prompt(prompt: Prompt) -> tuple[int, int]:
    if isinstance(prompt, TokenIds):
        return int(prompt.ids.size), _BYTES_PER_TOKEN_ID * int(prompt.ids.size)
    size = sum(len(text.encode(errors="surrogatepass")) for text in _texts(prompt))
    return size // _CHARACTERS_PER_TOKEN, _COPIES_OF_TEXT * size


def _texts(prompt: Chat | Text) -> list[str]:
    if isinstance(prompt, Text):
        return [prompt.text]
    content = [part.text for message in prompt.messages for part in message.parts]
    calls = [call for message in prompt.messages for call in message.tool_calls_json]
    names = [name for message in prompt.messages for name in (message.name, message.tool_call_id) if name]
    reasoning = [message.reasoning for message in prompt.messages]
    return [*content, *calls, *names, *reasoning, *prompt.tools_json, prompt.template_kwargs_json]
