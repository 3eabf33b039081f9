"""The bodies of /v1/responses as pydantic models: unknown keys are ignored and noted, types are not guessed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_TOOLS
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.schema import Schema, StreamOptions
from presift.orchestrator.api.http.schema.values import Effort, Float32, JsonObject, Tokens
from presift.orchestrator.domain.limits import MAX_MESSAGES

# For the caller's own bookkeeping, or for a service other than this one: they change no answer. Answers are not stored.
WITHOUT_EFFECT = frozenset(
    {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier", "store"}
    | {"user"}
)
# The values that request nothing, besides what is empty; all others are rejected.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "max_tool_calls": (),
    "messages": (),
    "n": (1,),
    "previous_response_id": (),
    "prompt": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
WHY = {
    "background": "answers are not stored: send the request and wait for its answer, or stream it",
    "conversation": "answers are not stored: send the whole conversation as input",
    "max_completion_tokens": "it is max_output_tokens here",
    "max_tokens": "it is max_output_tokens here",
    "messages": "they are input here",
    "previous_response_id": "answers are not stored: send the whole conversation as input",
    "reasoning_effort": "it is reasoning.effort here",
    "response_format": "it is text.format here",
}


class TextInput(Schema):
    """A part of a message; what answers have besides may come back."""

    place: ClassVar[str | None] = "input.content."
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    protected: bool = False
    document: bool = False


class Refusal(Schema):
    """A part of an assistant's message."""

    place: ClassVar[str | None] = "input.content."
    type: Literal["refusal"]
    refusal: str


class MessageItem(Schema):
    place: ClassVar[str | None] = "input."
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Any
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    protected: bool = False


class CallItem(Schema):
    place: ClassVar[str | None] = "input."
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    protected: bool = False


class OutputItem(Schema):
    place: ClassVar[str | None] = "input."
    type: Literal["function_call_output"]
    call_id: str
    output: Any
    id: str | None = None
    status: str | None = None
    protected: bool = False
    document: bool = False


class ReasoningItem(Schema):
    """Reasoning that another service has encrypted cannot be read: it is left out, as models' templates do."""

    place: ClassVar[str | None] = "input."
    type: Literal["reasoning"]
    content: list[Any] | None = None
    summary: list[Any] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: str | None = None


PARTS: dict[str, type[Schema]] = {
    "input_text": TextInput,
    "output_text": TextInput,
    "text": TextInput,
    "refusal": Refusal,
}
ITEMS: dict[str, type[Schema]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": OutputItem,
    "reasoning": ReasoningItem,
}


class FunctionTool(Schema):
    """The descriptions of a `document` may be dropped."""

    place: ClassVar[str | None] = "tools."
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    document: bool = False


class ChosenFunction(Schema):
    place: ClassVar[str | None] = "tool_choice."
    type: Literal["function"]
    name: str


class TextFormat(Schema):
    """`name` and what follows belong to json_schema."""

    place: ClassVar[str | None] = "text.format."
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Schema):
    place: ClassVar[str | None] = "text."
    format: JsonObject | None = None
    verbosity: Literal["medium"] | None = None


class ResponseReasoning(Schema):
    """The reasoning text is in the answer as it is, so there is no summary of it."""

    place: ClassVar[str | None] = "reasoning."
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesBody(Schema):
    """/v1/responses."""

    place: ClassVar[str | None] = ""
    model: str
    input: Any
    instructions: str | None = None
    tools: Annotated[list[JsonObject], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions = TextOptions()
    reasoning: ResponseReasoning = ResponseReasoning()
    max_output_tokens: Tokens | None = None
    temperature: Float32 | None = None
    top_p: Float32 | None = None
    metadata: dict[str, str] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presift: JsonObject = Field(default_factory=dict)

    def items(self) -> list[Any]:
        """The input as a list. Raises InvalidRequest."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        if not isinstance(self.input, list) or not self.input:
            raise InvalidRequest("input", brief(self.input), "a text, or a list of at least one item")
        if len(self.input) > MAX_MESSAGES:
            raise InvalidRequest("input", f"a list of {len(self.input)}", f"a list of at most {MAX_MESSAGES}")
        return self.input
