"""The orchestrator's table of limits: how much one Generate or Explain request may hold."""

from __future__ import annotations

from presift.core.errors import PromptTooLong
from presift.core.limits import MAX_PROMPT_CHARACTERS, MAX_PROMPT_TOKENS, MAX_SPANS, SAMPLING, Limit
from presift.v1 import orchestrator_pb2

MAX_MESSAGES = 4096
MAX_PARTS = 16_384
MAX_TOOLS = 512
MAX_TOOLS_CHARACTERS = 1_048_576
MAX_TOOL_CALLS = 512
MAX_TOOL_CALLS_CHARACTERS = 1_048_576
# A span of a reply is some fifty bytes: about 16 MiB.
MAX_EXPLAINED_SPANS = 262_144

_CALLS = "prompt.chat.messages.tool_calls_json"
_Asked = orchestrator_pb2.GenerateRequest | orchestrator_pb2.ExplainRequest


def _parts(asked: _Asked) -> int:
    return sum(len(message.parts) for message in asked.prompt.chat.messages)


def _chat_characters(asked: _Asked) -> int:
    messages = asked.prompt.chat.messages
    return sum(len(message.role) + sum(len(part.text) for part in message.parts) for message in messages)


def _calls(asked: _Asked) -> int:
    return sum(len(message.tool_calls_json) for message in asked.prompt.chat.messages)


def _calls_characters(asked: _Asked) -> int:
    messages = asked.prompt.chat.messages
    return sum(len(each.name) + len(each.tool_call_id) + sum(map(len, each.tool_calls_json)) for each in messages)


def _tools_characters(asked: _Asked) -> int:
    return sum(map(len, asked.prompt.chat.tools_json))


EXPLAIN: tuple[Limit, ...] = (
    Limit("prompt.token_ids", MAX_PROMPT_TOKENS, "tokens", lambda asked: len(asked.prompt.token_ids.ids)),
    Limit("prompt.protected_spans", MAX_SPANS, "spans", lambda asked: len(asked.prompt.protected_spans)),
    Limit("prompt.text", MAX_PROMPT_CHARACTERS, "characters", lambda asked: len(asked.prompt.text)),
    Limit("prompt.chat.messages", MAX_MESSAGES, "messages", lambda asked: len(asked.prompt.chat.messages)),
    Limit("prompt.chat.messages.parts", MAX_PARTS, "parts", _parts),
    Limit("prompt.chat", MAX_PROMPT_CHARACTERS, "characters", _chat_characters),
    Limit("prompt.chat.tools_json", MAX_TOOLS, "tools", lambda asked: len(asked.prompt.chat.tools_json)),
    Limit("prompt.chat.tools_json", MAX_TOOLS_CHARACTERS, "characters", _tools_characters),
    Limit(_CALLS, MAX_TOOL_CALLS, "calls", _calls),
    Limit(_CALLS, MAX_TOOL_CALLS_CHARACTERS, "characters", _calls_characters),
)
GENERATE: tuple[Limit, ...] = (*EXPLAIN, *SAMPLING)


def check_tokens(prompt_tokens: int) -> None:
    """Raise PromptTooLong for a text of more tokens than token ids may be sent."""
    if prompt_tokens > MAX_PROMPT_TOKENS:
        raise PromptTooLong("prompt", f"{prompt_tokens} tokens", f"at most {MAX_PROMPT_TOKENS}")
