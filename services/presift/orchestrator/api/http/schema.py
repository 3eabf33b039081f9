"""What an OpenAI request may hold, as pydantic models: unknown keys are refused, types are not guessed."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_SPANS, MAX_STOP_STRINGS
from presift.orchestrator.api.http.parameters import brief
from presift.orchestrator.domain.limits import MAX_MESSAGES, MAX_PARTS, MAX_TOOL_CALLS, MAX_TOOLS

# Seconds: a day. Clocks and timers count further, but not without an end.
MAX_TIMEOUT_S = 86_400


class Wire(BaseModel):
    """Base of all that comes in. null is the same as leaving a key out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Of unknown keys one is enough: pydantic would make an error of each of a million."""
        if not isinstance(given, dict):
            return given
        names = [name for name in cls.model_fields if given.get(name) is not None]
        unknown = islice((name for name in given if name not in cls.model_fields), 1)
        return {name: given[name] for name in (*names, *unknown)}


class Part(Wire):
    """A piece of a message's content; `protected` and `document` as TextPart has them. Only text can be read here."""

    type: Literal["text"]
    text: str
    protected: bool = False
    document: bool = False


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


# Behind a validator of ours a bound would be asked of None, too: it stands with the list.
# Of a list whose items are all wrong, the first is told, and the others are not looked at.
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]
Content = Annotated[Parts | None, BeforeValidator(_as_parts)]
Strings = Annotated[list[str], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]
JsonObject = dict[str, Any]


class Message(Wire):
    """One turn. What answers hold but prompts cannot may come back where it is empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    tool_calls: Annotated[list[JsonObject], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    protected: bool = False
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Place(Wire):
    """A message by number, from the end where negative, and one part of it; None is all of them."""

    message: int
    part: Annotated[int | None, Field(ge=0)] = None


Places = Annotated[list[Place], Field(max_length=MAX_PARTS, fail_fast=True)]


class Explain(Wire):
    include_kv_mask: bool = False
    span_per_token: bool = False


def _as_explain(explain: Any) -> Any:
    return {True: {}, False: None}[explain] if isinstance(explain, bool) else explain


class Options(Wire):
    """`presift`: its options. Those that the protos have are read by `options.py`, which knows their names."""

    route: str | None = None
    budget: JsonObject | None = None
    kv: JsonObject | None = None
    sampling: JsonObject | None = None
    protected_spans: Annotated[list[JsonObject], Field(max_length=MAX_SPANS, fail_fast=True)] | None = None
    protected: Places = []
    documents: Places = []
    explain: Annotated[Explain | None, BeforeValidator(_as_explain)] = None
    token_ids: bool = False
    timeout_s: Annotated[float | None, Field(gt=0, le=MAX_TIMEOUT_S)] = None


def _as_strings(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class Asked(Wire):
    """What both ways of asking have."""

    model: str
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Annotated[Strings | None, BeforeValidator(_as_strings)] = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presift: Options = Options()


class ChatAsked(Asked):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    tools: Annotated[list[JsonObject], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none"] | None = None


class TextAsked(Asked):
    """/v1/completions. A prompt is one text or one list of token ids."""

    prompt: Any


T = TypeVar("T", bound=Wire)


def parsed(kind: type[T], given: dict[str, Any]) -> T:
    """Raises InvalidRequest, naming the first parameter that is wrong and quoting no text."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = _path(first["loc"])
        if first["type"] == "extra_forbidden":
            raise InvalidRequest(field, "given", "left out: there is no such parameter") from None
        if first["type"] == "too_long":
            raise InvalidRequest(field, "longer", f"a list of at most {first['ctx']['max_length']}") from None
        if first["type"] == "missing":
            raise InvalidRequest(field, "missing", "given") from None
        said = first["msg"].removeprefix("Input should be ").removeprefix("Value should have ")
        raise InvalidRequest(field, brief(first["input"]), said) from None


def _path(places: tuple[int | str, ...]) -> str:
    return "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)[1:65]
