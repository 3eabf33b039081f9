"""The messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from presift.orchestrator.api.http.schema.base import Schema
from presift.orchestrator.api.http.schema.values import JsonObject
from presift.orchestrator.domain.limits import MAX_PARTS, MAX_TOOL_CALLS

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
# Where the text of a part stands, if not under "text".
_TEXT_KEYS = {"refusal": "refusal", "thinking": "thinking"}


def _refuse_other_media(kind: Any) -> Any:
    if isinstance(kind, str) and kind in _NO_TEXT:
        raise PydanticCustomError("no_text", "'text': this server reads no {media}", {"media": _NO_TEXT[kind]})
    return kind


class Part(Schema):
    """A piece of a message's content; `protected` and `document` as in TextPart. Only text is supported.

    The Responses API calls a text `input_text` or `output_text`. What an assistant thought is a part as well.
    """

    place: ClassVar[str | None] = "messages.content."
    type: Annotated[
        Literal["text", "input_text", "output_text", "refusal", "thinking", "reasoning"],
        BeforeValidator(_refuse_other_media),
    ]
    text: str
    protected: bool = False
    document: bool = False

    @property
    def is_reasoning(self) -> bool:
        return self.type in ("thinking", "reasoning")


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_as_part(each) for each in content] if isinstance(content, list) else content


def _as_part(part: Any) -> Any:
    if isinstance(part, str):  # smolagents and others send lists of texts
        return {"type": "text", "text": part}
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        return part
    key = _TEXT_KEYS.get(kind)
    if key is None or part.get("text") is not None:
        return part
    return {name: value for name, value in part.items() if name != key} | {"text": part.get(key)}


def _as_role(role: Any) -> Any:
    """Roles are compared without case, as SGLang's server does."""
    return role.lower() if isinstance(role, str) and len(role) < 16 else role


Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]


class Message(Schema):
    """One message. Keys that only answers have are accepted, because answers come back as messages."""

    place: ClassVar[str | None] = "messages."
    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_as_role)]
    content: Annotated[Parts | None, BeforeValidator(_as_parts, json_schema_input_type=str | Parts | None)] = None
    name: str | None = None
    tool_calls: Annotated[list[JsonObject], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    protected: bool = False
    # Reasoning models: what came before the content. `reasoning` is vLLM's and OpenRouter's name.
    reasoning_content: str | None = None
    reasoning: str | None = None
    # A refusal is text without content.
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tools: Annotated[list[Any] | None, Field(max_length=0)] = None
