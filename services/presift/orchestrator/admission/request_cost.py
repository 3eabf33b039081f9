"""The cost of a request, estimated before tokenization: tokens for fair queueing, and the bytes that it holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from presift.core.limits import MAX_PROMPT_TOKENS
from presift.orchestrator.domain.request import Chat, Prompt, Request, Text, TokenIds

# English and code have about this many characters per token; fair queueing needs no more than an estimate.
_CHARACTERS_PER_TOKEN = 4
# A token's id where it is received, tokenized, planned and sent, with its flags in masks.
_BYTES_PER_TOKEN = 32
# A text is held as it was received and as it was parsed, and as Python's string: in the request, rendered, and once
# more while it is rendered. One character beyond Latin-1 makes all of a string's characters two or four bytes wide.
_COPIES_OF_TEXT, _COPIES_OF_STRING = 2, 3
_REQUEST_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class RequestCost:
    """`tokens` to read and to generate, >= 1, of them `prompt_tokens` to read.

    `held_bytes` of memory while it is queued or runs, without its answer. `is_exact`: `prompt_tokens` is no estimate.
    """

    tokens: int
    held_bytes: int
    prompt_tokens: int = 0
    is_exact: bool = False


def request_cost(request: Request) -> RequestCost:
    """An estimate; for memory a generous one."""
    tokens, held_bytes = _prompt(request.prompt)
    new_tokens = request.choices * request.sampling.max_new_tokens
    is_exact = isinstance(request.prompt, TokenIds)
    return RequestCost(max(1, tokens + new_tokens), _REQUEST_BYTES + held_bytes, tokens, is_exact)


def tokenizing_cost(size: int) -> RequestCost:
    """Of a call that only tokenizes `size` bytes of text, or makes text of as many token ids."""
    tokens = size // _CHARACTERS_PER_TOKEN
    return RequestCost(max(1, tokens), _REQUEST_BYTES + (_COPIES_OF_TEXT + _COPIES_OF_STRING) * size, tokens)


def _prompt(prompt: Prompt) -> tuple[int, int]:
    if isinstance(prompt, TokenIds):
        return int(prompt.ids.size), _BYTES_PER_TOKEN * int(prompt.ids.size)
    texts = _texts(prompt)
    size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    tokens, strings = size // _CHARACTERS_PER_TOKEN, sum(map(sys.getsizeof, texts))
    held_bytes = _COPIES_OF_TEXT * size + _COPIES_OF_STRING * strings
    return tokens, held_bytes + _BYTES_PER_TOKEN * min(tokens, MAX_PROMPT_TOKENS)


def _texts(prompt: Chat | Text) -> list[str]:
    if isinstance(prompt, Text):
        return [prompt.text]
    content = [part.text for message in prompt.messages for part in message.parts]
    calls = [call for message in prompt.messages for call in message.tool_calls_json]
    names = [name for message in prompt.messages for name in (message.name, message.tool_call_id) if name]
    reasoning = [message.reasoning for message in prompt.messages]
    return [*content, *calls, *names, *reasoning, *prompt.tools_json, prompt.template_kwargs_json]
