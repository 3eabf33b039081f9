"""The messages of another API as those of a chat, and where in the caller's body each of them was.

The other APIs' bodies become bodies of /v1/chat/completions: one schema and one set of checks for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.schema import ChatBody, Ignored, Schema, validate
from presift.orchestrator.api.http.unsupported import NEUTRAL, NOTED

T = TypeVar("T", bound=Schema)

_MESSAGE = re.compile(r"messages\[(\d+)\](.*)", re.DOTALL)
_TOOL = re.compile(r"tools\[(\d+)\]\.function(\..*)?", re.DOTALL)
_PLACE = {"message", "part"}
_REFERENCES = ("protected", "documents")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a chat message comes from: its `path` in the body, the `number` of the caller's message (None for one that
    has none), and the number that each of its parts has there."""

    path: str
    number: int | None = None
    parts: tuple[int, ...] = ()


@dataclass(slots=True)
class Conversation:
    """Chat messages with their origins. `list_name` is the caller's name for the list of messages, and `count` how
    many the caller has sent."""

    list_name: str
    count: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)

    def add(self, message: dict[str, Any], origin: Origin) -> None:
        self.messages.append(message)
        self.origins.append(origin)

    def presift(self, options: dict[str, Any]) -> dict[str, Any]:
        """The caller's `presift`, with references to messages of the chat. Raises InvalidRequest."""
        changed = dict(options)
        for name in _REFERENCES:
            if isinstance(options.get(name), list):
                path = f"presift.{name}"
                changed[name] = [
                    found for at, each in enumerate(options[name]) for found in self._found(each, f"{path}[{at}]")
                ]
        return changed

    def _found(self, reference: Any, path: str) -> list[Any]:
        if not isinstance(reference, dict) or type(reference.get("message")) is not int or reference.keys() - _PLACE:
            return [reference]  # reported by the chat's schema
        number, part = reference["message"], reference.get("part")
        if not -self.count <= number < self.count:
            limit = f"the number of one of {self.count} in {self.list_name}"
            raise InvalidRequest(f"{path}.message", brief(number), limit)
        places = [(at, each) for at, each in enumerate(self.origins) if each.number == number % self.count]
        if part is None:
            return [{"message": at} for at, _ in places]
        found = [{"message": at, "part": each.parts.index(part)} for at, each in places if part in each.parts]
        if not found:
            raise InvalidRequest(f"{path}.part", brief(part), "the number of a part that has text")
        return found


@dataclass(frozen=True, slots=True)
class TranslatedNames(ParameterNames):
    """Chat parameters by the names of the API that the caller used. `renamed` are prefixes; the first match counts."""

    prompt: str = "messages"
    max_new_tokens: str = "max_tokens"
    renamed: Mapping[str, str] = field(default_factory=dict)
    list_name: str = "messages"
    origins: tuple[Origin, ...] = ()

    def with_spellings(self, chat: ParameterNames) -> TranslatedNames:
        """With those that the chat's body has."""
        return replace(self, max_new_tokens=chat.max_new_tokens, sampling=chat.sampling)

    def parameter(self, field: str, message: str = "messages") -> str:
        name = ParameterNames.parameter(self, field, message)
        if (found := _MESSAGE.fullmatch(name)) and int(found[1]) < len(self.origins):
            return self.origins[int(found[1])].path + found[2]
        if found := _TOOL.fullmatch(name):
            return f"tools[{found[1]}]{found[2] or ''}"
        if name == "messages" or name.startswith("messages."):
            return self.list_name + name.removeprefix("messages")
        for prefix, own in self.renamed.items():
            if name == prefix or name.startswith(f"{prefix}."):
                return own + name.removeprefix(prefix)
        return name


@dataclass(frozen=True, slots=True)
class Translated:
    """The body of a chat, and what the caller calls its parameters."""

    given: dict[str, Any]
    names: TranslatedNames


def shared_parameters(given: dict[str, Any], own: Container[str]) -> dict[str, Any]:
    """The parameters that mean the same in a chat: those of other servers, which the API itself does not have."""
    known = (*ChatBody.model_fields, *NEUTRAL, *NOTED)
    return {name: given[name] for name in known if name not in own and given.get(name) is not None}


def without(given: dict[str, Any], names: Container[str]) -> dict[str, Any]:
    """The parameters that are left for the API's own schema."""
    return {name: value for name, value in given.items() if name not in names and value is not None}


def validate_at(schema: type[T], value: Any, path: str, ignored: Ignored | None = None) -> T:
    """As `validate`, for a part of a body. Raises InvalidRequest."""
    if not isinstance(value, dict):
        raise InvalidRequest(path, brief(value), "an object")
    try:
        return validate(schema, value, ignored)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}.{error.field}", error.value, error.limit) from None


def kind_of(value: Any, kinds: Mapping[str, type[Schema]], path: str, default: str = "") -> str:
    """The `type` of an object, which is one of `kinds`. Raises InvalidRequest for one that is not supported."""
    if not isinstance(value, dict):
        raise InvalidRequest(path, brief(value), "an object")
    kind = value.get("type", default)
    if not isinstance(kind, str) or kind not in kinds:
        raise InvalidRequest(f"{path}.type", brief(kind), f"one of {', '.join(kinds)}: this server reads no others")
    return kind
