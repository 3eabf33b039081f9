"""The messages of another API as those of a chat, and where in the caller's body each of them was.

The other APIs' bodies become bodies of /v1/chat/completions: one schema and one set of checks for all of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.schema import ChatBody, Ignored, Schema, validate
from presift.orchestrator.api.http.unsupported import NEUTRAL, NOTED, check_neutral
from presift.orchestrator.domain.limits import MAX_PARTS

T = TypeVar("T", bound=Schema)

_MESSAGE = re.compile(r"messages\[(\d+)\](.*)", re.DOTALL)
_TOOL = re.compile(r"tools\[(\d+)\]\.function(\..*)?", re.DOTALL)
_PLACE = {"message", "part"}
_REFERENCES = ("protected", "documents")
# (message, part; None for all of them) -> references to messages of the chat.
_Places = dict[tuple[int, int | None], list[dict[str, int]]]


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
        """The caller's `presift`, with references to messages of the chat, each once. Raises InvalidRequest."""
        changed, places = dict(options), self._places()
        for name in _REFERENCES:
            references = options.get(name)
            if isinstance(references, list) and len(references) <= MAX_PARTS:  # more are refused by the chat's schema
                changed[name] = self._found(references, places, f"presift.{name}")
        return changed

    def _places(self) -> _Places:
        """What a reference to one of the caller's messages, or to a part of it, refers to in the chat."""
        places: _Places = defaultdict(list)
        for at, origin in enumerate(self.origins):
            if origin.number is not None:
                places[origin.number, None].append({"message": at})
                for place, part in enumerate(origin.parts):
                    places[origin.number, part].append({"message": at, "part": place})
        return places

    def _found(self, references: list[Any], places: _Places, path: str) -> list[Any]:
        """Many references to a message that has become many messages must not multiply."""
        found, seen = list[Any](), set[tuple[int, int | None]]()
        for at, reference in enumerate(references):
            key = self._key(reference, f"{path}[{at}]")
            if key is None:
                found.append(reference)  # reported by the chat's schema
            elif key not in places and key[1] is not None:
                limit = "the number of a part that has text"
                raise InvalidRequest(f"{path}[{at}].part", brief(reference["part"]), limit)
            elif key not in seen:
                seen.add(key)
                found += places.get(key, ())
        return found

    def _key(self, reference: Any, path: str) -> tuple[int, int | None] | None:
        """The message and the part that a reference names; None if it is malformed."""
        if not isinstance(reference, dict) or type(reference.get("message")) is not int or reference.keys() - _PLACE:
            return None
        number, part = reference["message"], reference.get("part")
        if not -self.count <= number < self.count:
            limit = f"the number of one of {self.count} in {self.list_name}"
            raise InvalidRequest(f"{path}.message", brief(number), limit)
        if part is not None and not isinstance(part, int):
            raise InvalidRequest(f"{path}.part", brief(part), "the number of a part that has text")
        return number % self.count, part


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


class ApiParameters:
    """The parameters that an API has itself: those of its `schema`, which do not mean the same in a chat or are
    translated, those `without_effect`, and those of which only a `neutral` value is taken, one that asks for nothing.
    `why`: the reasons for which other values are refused."""

    def __init__(
        self,
        schema: type[Schema],
        without_effect: frozenset[str],
        neutral: Mapping[str, tuple[Any, ...]],
        why: Mapping[str, str],
    ) -> None:
        self._neutral, self._why = neutral, why
        self._elsewhere = neutral.keys() | without_effect
        self._own = schema.model_fields.keys() | self._elsewhere

    def shared(self, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters that mean the same in a chat: those of other servers, which the API itself does not have."""
        known = (*ChatBody.model_fields, *NEUTRAL, *NOTED)
        return {name: given[name] for name in known if name not in self._own and given.get(name) is not None}

    def validated(self, schema: type[T], given: dict[str, Any], ignored: Ignored) -> T:
        """Validate what is left of the caller's parameters for the schema of an endpoint. Raises InvalidRequest."""
        check_neutral(given, self._neutral, self._why)
        elsewhere = self._elsewhere | self.shared(given).keys()
        left = {name: value for name, value in given.items() if name not in elsewhere and value is not None}
        return validate(schema, left, ignored)


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
