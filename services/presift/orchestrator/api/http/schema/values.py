"""The types of values: numbers as protobuf's JSON has them, names, lists of strings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ctypes import c_float
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from presift.core.limits import MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS

_MOST_TOKENS = 2**32 - 1


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


def _as_length(value: Any) -> Any:
    """The length of an answer, an upper bound: clients send the largest number of their language for no limit."""
    value = _as_integer(value)
    return min(value, _MOST_TOKENS) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_float32(value: float) -> float:
    """As protobuf's `float` holds it, so that both APIs decide and cache the same."""
    return c_float(value).value


def named(prefix: str, members: Mapping[str, Any]) -> BeforeValidator:
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
Float32 = Annotated[float, AfterValidator(_as_float32)]
OptionFloat32 = Annotated[float, BeforeValidator(_as_number), AfterValidator(_as_float32)]
Tokens = Annotated[int, BeforeValidator(_as_length), Field(ge=1)]
TokensOrNone = Annotated[int, BeforeValidator(_as_length), Field(ge=0)]
# -1 is random, as in vLLM and llama.cpp.
Seed = Annotated[int, Field(ge=-1, lt=2**64)]
# -1 and 0 are all tokens.
TopK = Annotated[int, Field(ge=-1, lt=2**32)]
TokenIdList = Annotated[list[UInt32], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True)]
JsonObject = dict[str, Any]


def _as_json_text(document: Any) -> Any:
    if isinstance(document, dict):
        return json.dumps(document)
    if not isinstance(document, str):
        raise PydanticCustomError("no_document", "an object, or JSON as a string")
    return document


# A JSON document: as text, or as the object itself. Its value is the text; without any, nothing is asked for.
JsonDocument = Annotated[str, BeforeValidator(_as_json_text, json_schema_input_type=str | JsonObject)]


def _as_logprobs(count: Any) -> Any:
    return None if count is False else count


# The number of most likely tokens; false is the same as leaving it out.
Logprobs = Annotated[int | None, BeforeValidator(_as_logprobs, json_schema_input_type=int | Literal[False] | None)]


def _as_effort(effort: Any) -> Any:
    if effort == "":
        return None
    if isinstance(effort, bool) or not isinstance(effort, str | int | float) or len(str(effort)) > 16:
        raise PydanticCustomError("no_effort", "a name such as 'low', or a number")
    return effort


# Which values exist is the chat template's matter.
Effort = Annotated[Any, BeforeValidator(_as_effort, json_schema_input_type=str | float)]


def _as_strings(stop: Any) -> Any:
    """An empty string asks for nothing. In a list it is refused."""
    if stop == "":
        return None
    return [stop] if isinstance(stop, str) else stop


_Strings = Annotated[list[str], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]
Strings = Annotated[_Strings | None, BeforeValidator(_as_strings, json_schema_input_type=str | _Strings | None)]


def _as_token_biases(bias: Any) -> Any:
    """JSON has string keys only."""
    if not isinstance(bias, dict):
        return bias
    try:
        by_id = {int(token_id): value for token_id, value in bias.items()}
    except ValueError:
        by_id = {-1: 0.0}
    if any(not 0 <= token_id < 2**32 for token_id in by_id):
        raise PydanticCustomError("no_token_ids", "an object of token ids and numbers")
    return by_id


LogitBias = Annotated[
    dict[int, OptionFloat32], BeforeValidator(_as_token_biases, json_schema_input_type=dict[str, float])
]
