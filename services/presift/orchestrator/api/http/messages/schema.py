"""The bodies of /v1/messages as pydantic models: unknown keys are ignored and noted, types are not guessed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from presift.core.limits import MAX_STOP_STRINGS, MAX_TOOLS
from presift.orchestrator.api.http.schema import Schema
from presift.orchestrator.api.http.schema.values import Effort, Float32, JsonObject, Tokens, TopK
from presift.orchestrator.domain.limits import MAX_MESSAGES

# For the caller's own bookkeeping, or for a service other than this one: they change no answer.
WITHOUT_EFFECT = frozenset(
    {"anthropic_beta", "anthropic_version", "betas", "cache_control", "diagnostics", "inference_geo", "metadata"}
    | {"service_tier", "speed", "user_profile_id"}
)
# The values that request nothing, besides what is empty; all others are rejected.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": ({"edits": []}, {"edits": None}),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "mcp_servers": (),
    "n": (1,),
    "parallel_tool_calls": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "stop": (),
    "stream_options": (),
    "thread": (),
    "top_logprobs": (0,),
}
WHY = {
    "max_completion_tokens": "it is max_tokens here",
    "parallel_tool_calls": "it is tool_choice.disable_parallel_tool_use here",
    "reasoning_effort": "it is output_config.effort here",
    "response_format": "it is output_config.format here",
    "stop": "they are stop_sequences here",
    "thread": "this server stores no conversations",
}


class Block(Schema):
    """What all blocks of content may have. Prompts are cached without `cache_control`."""

    place: ClassVar[str | None] = "messages.content."
    cache_control: JsonObject | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: Any = None
    protected: bool = False
    document: bool = False


class ThinkingBlock(Block):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject
    caller: Any = None


class ToolResultBlock(Block):
    """`is_error` changes nothing: what went wrong stands in the content."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Any = None
    is_error: bool | None = None
    protected: bool = False
    document: bool = False


TEXTS: dict[str, type[Schema]] = {"text": TextBlock}
USER_BLOCKS: dict[str, type[Schema]] = TEXTS | {"tool_result": ToolResultBlock}
ASSISTANT_BLOCKS: dict[str, type[Schema]] = TEXTS | {"thinking": ThinkingBlock, "tool_use": ToolUseBlock}


class InputMessage(Schema):
    place: ClassVar[str | None] = "messages."
    role: Literal["user", "assistant", "system"]
    content: Any
    protected: bool = False


class Tool(Schema):
    """A tool of the caller's own; the descriptions of a `document` may be dropped."""

    place: ClassVar[str | None] = "tools."
    type: Literal["custom"] = "custom"
    name: str
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None
    cache_control: JsonObject | None = None
    eager_input_streaming: bool | None = None
    document: bool = False


class ToolChoice(Schema):
    place: ClassVar[str | None] = "tool_choice."
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Schema):
    """`budget_tokens` bounds nothing here: `max_tokens` bounds thinking and answer together."""

    place: ClassVar[str | None] = "thinking."
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int | None, Field(ge=1024)] = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Schema):
    place: ClassVar[str | None] = "output_config.format."
    type: Literal["json_schema"]
    schema_: Annotated[JsonObject, Field(alias="schema")]


class OutputConfig(Schema):
    place: ClassVar[str | None] = "output_config."
    effort: Effort | None = None
    format: OutputFormat | None = None


class CountBody(Schema):
    """/v1/messages/count_tokens: what a prompt is made of."""

    place: ClassVar[str | None] = ""
    model: str
    messages: Annotated[list[JsonObject], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: Any = None
    tools: Annotated[list[JsonObject], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: OutputFormat | None = None
    presift: JsonObject = Field(default_factory=dict)


class MessagesBody(CountBody):
    """/v1/messages."""

    max_tokens: Tokens
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None = None
    stream: bool = False
    temperature: Float32 | None = None
    top_p: Float32 | None = None
    top_k: TopK | None = None
