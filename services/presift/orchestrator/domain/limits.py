"""How much one Generate or Explain request may hold, whichever API it arrives by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from presift.core.errors import PromptTooLong
from presift.core.limits import (
    MAX_PROMPT_CHARACTERS,
    MAX_PROMPT_TOKENS,
    MAX_SPANS,
    MAX_TEMPLATE_KWARGS_CHARACTERS,
    MAX_TOOLS,
    MAX_TOOLS_CHARACTERS,
    Limit,
)

MAX_MESSAGES = 4096
MAX_PARTS = 16_384
MAX_TOOL_CALLS = 512
MAX_TOOL_CALLS_CHARACTERS = 1_048_576
# A span of an explanation takes some fifty bytes over gRPC, about 16 MiB in all, and 180 over HTTP.
MAX_EXPLAINED_SPANS = 262_144

_TOOL_CALLS = "prompt.chat.messages.tool_calls_json"


def _characters(message: Any) -> int:
    return len(message.role) + len(message.reasoning) + sum(len(part.text) for part in message.parts)


def _in_messages(measure: Callable[[Any], int]) -> Callable[[Any], int]:
    """The sum of `measure` over the messages of a chat."""
    return lambda chat: sum(map(measure, chat.messages))


# Each table measures one value: a chat, a text, token ids or spans. A chat is the domain's or the protobuf message,
# whose fields have the same names.
CHAT: tuple[Limit, ...] = (
    Limit("prompt.chat.messages", MAX_MESSAGES, "messages", lambda chat: len(chat.messages)),
    Limit("prompt.chat.messages.parts", MAX_PARTS, "parts", _in_messages(lambda message: len(message.parts))),
    Limit(
        "prompt.chat",
        MAX_PROMPT_CHARACTERS,
        "characters",
        _in_messages(_characters),
    ),
    Limit("prompt.chat.tools_json", MAX_TOOLS, "tools", lambda chat: len(chat.tools_json)),
    Limit(
        "prompt.chat.tools_json",
        MAX_TOOLS_CHARACTERS,
        "characters",
        lambda chat: sum(map(len, chat.tools_json)),
    ),
    Limit(
        "prompt.chat.template_kwargs_json",
        MAX_TEMPLATE_KWARGS_CHARACTERS,
        "characters",
        lambda chat: len(chat.template_kwargs_json),
    ),
    Limit(_TOOL_CALLS, MAX_TOOL_CALLS, "calls", _in_messages(lambda message: len(message.tool_calls_json))),
    Limit(
        _TOOL_CALLS,
        MAX_TOOL_CALLS_CHARACTERS,
        "characters",
        _in_messages(
            lambda message: len(message.name) + len(message.tool_call_id) + sum(map(len, message.tool_calls_json))
        ),
    ),
)
TEXT: tuple[Limit, ...] = (Limit("prompt.text", MAX_PROMPT_CHARACTERS, "characters", len),)
TOKEN_IDS: tuple[Limit, ...] = (Limit("prompt.token_ids", MAX_PROMPT_TOKENS, "tokens", len),)
SPANS: tuple[Limit, ...] = (Limit("prompt.protected_spans", MAX_SPANS, "spans", len),)


def check_tokens(prompt_tokens: int) -> None:
    """Raise PromptTooLong if a tokenized text has more tokens than token ids may be sent."""
    if prompt_tokens > MAX_PROMPT_TOKENS:
        raise PromptTooLong("prompt", f"{prompt_tokens} tokens", f"at most {MAX_PROMPT_TOKENS}")
