"""The bodies of OpenAI requests as pydantic models: unknown keys are rejected, types are not guessed."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_float
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_SPANS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from presift.core.plan import Route
from presift.core.policies import KvSelection
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.domain.limits import MAX_MESSAGES, MAX_PARTS, MAX_TOOL_CALLS, MAX_TOOLS

# Seconds: a day. Clocks and timers accept more, but not without bound.
MAX_TIMEOUT_S = 86_400


class Schema(BaseModel):
    """Base of all parts of a body. null is the same as leaving a key out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        """One unknown key is enough: pydantic would build an error for each of a million."""
        if not isinstance(given, dict):
            return given
        names = [name for name in cls.model_fields if given.get(name) is not None]
        unknown = islice((name for name in given if name not in cls.model_fields), 1)
        return {name: given[name] for name in (*names, *unknown)}


def _as_number(value: Any) -> Any:
    """Protobuf's JSON accepts "0.5" and true as numbers."""
    if not isinstance(value, str | bool):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _as_integer(value: Any) -> Any:
    """Protobuf's JSON accepts 5.0, "5" and "5.0" as integers."""
    if isinstance(value, str) and " " not in value:
        try:
            return int(value)
        except ValueError:
            value = _as_number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_float32(value: float) -> float:
    """As protobuf's `float` holds it, so that both APIs decide and cache the same."""
    return c_float(value).value


def _named(prefix: str, members: Mapping[str, Any]) -> BeforeValidator:
    """A name as the client spells it (`spec_pc`) or as the protos do (`ROUTE_SPEC_PC`)."""

    def member(value: Any) -> Any:
        name = value.removeprefix(prefix).lower() if isinstance(value, str) else ""
        if name not in members:
            raise PydanticCustomError("unknown_name", "one of {names}", {"names": ", ".join(members)})
        return members[name]

    return BeforeValidator(member, json_schema_input_type=Literal[tuple(members)])


# A bound on a list stands with the list: behind a validator it would be applied to None as well. With `fail_fast` only
# the first wrong item of a list is reported, and the others are not validated.
UInt32 = Annotated[int, BeforeValidator(_as_integer), Field(ge=0, lt=2**32)]
UInt64 = Annotated[int, Field(ge=0, lt=2**64)]
Float32 = Annotated[float, AfterValidator(_as_float32)]
OptionFloat32 = Annotated[float, BeforeValidator(_as_number), AfterValidator(_as_float32)]
Tokens = Annotated[int, Field(ge=1, lt=2**32)]
JsonObject = dict[str, Any]


# Parts of other kinds, as OpenAI, SGLang and vLLM name them.
_NO_TEXT = {
    "audio_url": "audio",
    "file": "files",
    "image_url": "pictures",
    "input_audio": "audio",
    "input_file": "files",
    "input_image": "pictures",
    "video_url": "videos",
}


def _refuse_other_media(kind: Any) -> Any:
    if isinstance(kind, str) and kind in _NO_TEXT:
        raise PydanticCustomError("no_text", "'text': this server reads no {media}", {"media": _NO_TEXT[kind]})
    return kind


class Part(Schema):
    """A piece of a message's content; `protected` and `document` as in TextPart. Only text is supported."""

    type: Annotated[Literal["text"], BeforeValidator(_refuse_other_media)]
    text: str
    protected: bool = False
    document: bool = False


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]


class Message(Schema):
    """One message. Keys that only answers use may come back if they are empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Parts | None, BeforeValidator(_as_parts, json_schema_input_type=str | Parts | None)] = None
    name: str | None = None
    tool_calls: Annotated[list[JsonObject], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    protected: bool = False
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None


class StreamOptions(Schema):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class PartReference(Schema):
    """A message by its number (negative: from the end) and one of its parts; None is all of them."""

    message: int
    part: Annotated[int | None, Field(ge=0)] = None


PartReferences = Annotated[list[PartReference], Field(max_length=MAX_PARTS, fail_fast=True)]


class AutoCapacityOptions(Schema):
    """As in presift.v1.AutoCapacity."""

    coverage: OptionFloat32 = 0.0
    min_tokens: UInt32 = 0
    max_tokens: UInt32 = 0


class BudgetOptions(Schema):
    """As in presift.v1.Budget."""

    max_prompt_tokens: UInt32 | None = None
    max_kv_tokens: UInt32 | None = None
    strict: bool = False
    compress_above_tokens: UInt32 | None = None
    max_ttft_ms: UInt32 | None = None
    min_coverage: OptionFloat32 | None = None
    auto_capacity: AutoCapacityOptions | None = None


class KvOptions(Schema):
    """As in presift.v1.KvOptions."""

    selection: Annotated[KvSelection | None, _named("KV_SELECTION_", {each.value: each for each in KvSelection})] = None
    keep_full_prefix: bool | None = None
    lookahead_tokens: UInt32 | None = None
    continue_prompt_tokens: UInt32 | None = None


class SamplingOptions(Schema):
    """The fields of presift.v1.Sampling that OpenAI has no parameter for."""

    top_k: UInt32 | None = None
    stop_token_ids: Annotated[list[UInt32], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True)] = []
    ignore_eos: bool = False


class SpanOptions(Schema):
    """As in presift.v1.Span."""

    start: UInt32 = 0
    end: UInt32 = 0


class ExplainOptions(Schema):
    include_kv_mask: bool = False
    span_per_token: bool = False


def _as_explain(explain: Any) -> Any:
    return {True: {}, False: None}[explain] if isinstance(explain, bool) else explain


class PresiftOptions(Schema):
    """`presift`: what OpenAI has no parameter for."""

    route: Annotated[Route | None, _named("ROUTE_", {"auto": None} | {each.value: each for each in Route})] = None
    budget: BudgetOptions = BudgetOptions()
    kv: KvOptions = KvOptions()
    sampling: SamplingOptions = SamplingOptions()
    protected_spans: Annotated[list[SpanOptions], Field(max_length=MAX_SPANS, fail_fast=True)] = []
    protected: PartReferences = []
    documents: PartReferences = []
    explain: Annotated[
        ExplainOptions | None, BeforeValidator(_as_explain, json_schema_input_type=bool | ExplainOptions | None)
    ] = None
    token_ids: bool = False
    timeout_s: Annotated[float | None, Field(gt=0, le=MAX_TIMEOUT_S)] = None


def _as_strings(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Strings = Annotated[list[str], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]


class CommonBody(Schema):
    """What both endpoints accept."""

    model: str
    max_tokens: Tokens | None = None
    temperature: Float32 | None = None
    top_p: Float32 | None = None
    seed: UInt64 | None = None
    stop: Annotated[Strings | None, BeforeValidator(_as_strings, json_schema_input_type=str | Strings | None)] = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presift: PresiftOptions = PresiftOptions()


class ChatBody(CommonBody):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    tools: Annotated[list[JsonObject], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none"] | None = None


class CompletionBody(CommonBody):
    """/v1/completions. A prompt is one text or one list of token ids."""

    prompt: Any


Body = ChatBody | CompletionBody
T = TypeVar("T", bound=Schema)

# What a value must be, by the type of pydantic's error.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "extra_forbidden": "left out: there is no such parameter",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "int_type": "an integer",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "missing": "given",
    "model_type": "an object",
    "none_required": "left out",
    "string_type": "a string",
    "too_long": "a list of at most {max_length}",
}


def validate(schema: type[T], given: dict[str, Any]) -> T:
    """Raises InvalidRequest, which names the first invalid parameter and quotes no text."""
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False)[0]) from None


def _invalid(error: ErrorDetails) -> InvalidRequest:
    kind = error["type"]
    limit = _EXPECTED[kind].format(**error.get("ctx", {})) if kind in _EXPECTED else error["msg"]
    if kind == "too_long":
        value = f"a list of {len(error['input'])}"
    else:
        value = {"extra_forbidden": "given", "missing": "missing"}.get(kind) or brief(error["input"])
    return InvalidRequest(_path(error["loc"]), value, limit)


def _path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in location)[1:65]
