"""The bodies of both endpoints: OpenAI's parameters, and those that SGLang and vLLM add at the same level."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from presift.core.limits import MAX_TOOLS
from presift.orchestrator.api.http.schema.base import Schema
from presift.orchestrator.api.http.schema.messages import Message
from presift.orchestrator.api.http.schema.options import PresiftOptions
from presift.orchestrator.api.http.schema.values import (
    Effort,
    Float32,
    JsonDocument,
    JsonObject,
    LogitBias,
    Logprobs,
    Seed,
    Strings,
    TokenIdList,
    Tokens,
    TokensOrNone,
    TopK,
    UInt32,
)
from presift.orchestrator.domain.limits import MAX_MESSAGES
from presift.orchestrator.domain.request import MAX_CHOICES


class StreamOptions(Schema):
    """`continuous_usage_stats` is SGLang's and vLLM's: usage in every chunk."""

    place: ClassVar[str | None] = "stream_options."
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class StructuredOutputs(Schema):
    """vLLM's newer form of its `guided_*` parameters."""

    place: ClassVar[str | None] = "structured_outputs."
    json_: Annotated[JsonDocument | None, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: JsonDocument | None = None


class CommonBody(Schema):
    """What both endpoints accept. Without a `model` the target answers, as with SGLang."""

    place: ClassVar[str | None] = ""
    model: str | None = None
    temperature: Float32 | None = None
    top_p: Float32 | None = None
    seed: Seed | None = None
    stop: Strings = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    presence_penalty: Float32 | None = None
    frequency_penalty: Float32 | None = None
    logit_bias: LogitBias | None = None
    response_format: JsonObject | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # SGLang's and vLLM's.
    top_k: TopK | None = None
    min_p: Float32 | None = None
    repetition_penalty: Float32 | None = None
    min_tokens: UInt32 | None = None
    stop_token_ids: TokenIdList | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    return_prompt_token_ids: bool = False
    json_schema: JsonDocument | None = None
    regex: str | None = None
    ebnf: str | None = None
    guided_json: JsonDocument | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    presift: PresiftOptions = PresiftOptions()


class NamedFunction(Schema):
    place: ClassVar[str | None] = "tool_choice.function."
    name: str


class NamedTool(Schema):
    """The tool that must be called."""

    place: ClassVar[str | None] = "tool_choice."
    type: Literal["function"] = "function"
    function: NamedFunction


_TOOL_CHOICES = ("auto", "none", "required")


def _check_tool_choice(choice: Any) -> Any:
    """Not a union: its errors would name the alternatives instead of the parameter."""
    if isinstance(choice, dict) and choice.get("type", "function") == "function":
        return NamedTool.model_validate(choice)
    if not isinstance(choice, str) or choice not in _TOOL_CHOICES:
        limit = "auto, none, required, or {'type': 'function', 'function': {'name': ...}}"
        raise PydanticCustomError("no_tool_choice", limit)
    return choice


ToolChoiceOption = Annotated[
    str | NamedTool,
    PlainValidator(_check_tool_choice, json_schema_input_type=Literal["auto", "none", "required"] | NamedTool),
]


class ReasoningOptions(Schema):
    """OpenRouter's form of `reasoning_effort`, which SGLang accepts too."""

    place: ClassVar[str | None] = "reasoning."
    effort: Effort | None = None
    enabled: bool | None = None


class ChatBody(CommonBody):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    tools: Annotated[list[JsonObject], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoiceOption | None = None
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int | None = None
    reasoning_effort: Effort | None = None
    reasoning: ReasoningOptions | None = None
    enable_thinking: bool | None = None
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionBody(CommonBody):
    """/v1/completions. A prompt is one text, one list of token ids, or a list of either."""

    prompt: Any
    suffix: str | None = None
    # 0 only with `echo`.
    max_tokens: TokensOrNone | None = None
    best_of: int | None = None
    echo: bool = False
    logprobs: Logprobs = None

    @property
    def is_batch(self) -> bool:
        """Whether `prompt` is a list of prompts."""
        prompt = self.prompt
        return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)


Body = ChatBody | CompletionBody
