"""What all parts of a body share: how keys, nulls and errors are handled."""

from __future__ import annotations

from collections.abc import Container
from functools import cache
from itertools import islice
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief

# The names of ignored keys that an answer repeats, and the length to which each is cut.
MAX_IGNORED = 32
_NAME_CHARACTERS = 64

# The ignored keys of one body, in order.
Ignored = dict[str, None]


class Schema(BaseModel):
    """Base of all parts of a body. null is the same as leaving a key out.

    `place` is the part's place in the body; unknown keys are then ignored and noted. None refuses unknown keys.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False)
    place: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any, info: ValidationInfo) -> Any:
        """One unknown key is enough for an error: pydantic would build one for each of a million."""
        if not isinstance(given, dict):
            return given
        known = _keys(cls)
        names = [name for name in known if given.get(name) is not None]
        if cls.place is not None:
            note_ignored(info.context, cls.place, given, known)
        elif len(given) > len(names):
            names += islice((name for name in given if name not in known), 1)
        return {name: given[name] for name in names}


@cache
def _keys(schema: type[BaseModel]) -> dict[str, None]:
    """The keys of a part, as they are written."""
    return {field.alias or name: None for name, field in schema.model_fields.items()}


def note_ignored(ignored: Ignored | None, place: str, given: dict[str, Any], known: Container[str]) -> None:
    """Add the unknown keys of `given` that ask for something."""
    if ignored is None:
        return
    for name, value in given.items():
        if len(ignored) >= MAX_IGNORED:
            return
        if name not in known and value is not None:
            add_ignored(ignored, f"{place}{name}")


def add_ignored(ignored: Ignored, name: str) -> None:
    """Add a name, cut to a length that an answer can repeat, unless there are enough of them."""
    if len(ignored) < MAX_IGNORED:
        ignored[name[:_NAME_CHARACTERS]] = None


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
    "too_short": "a list of at least {min_length}",
}


def validate(schema: type[T], given: dict[str, Any], ignored: Ignored | None = None) -> T:
    """Raises InvalidRequest, which names the first invalid parameter and quotes no text. Adds to `ignored`."""
    try:
        return schema.model_validate(given, context=ignored)
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
