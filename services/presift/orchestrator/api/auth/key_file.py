"""The file of API keys and tenants, in YAML or JSON. Errors name the place and never quote the contents.

keys:
  - {name: acme-ci, tenant: acme, sha256: 9f86d0...}
  - {name: operator, tenant: ops, sha256: 2c624a..., admin: true, expires: 2027-06-30}
tenants:
  acme: {tokens_per_minute: 200000, concurrency: 8}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic_core import PydanticCustomError

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.auth.api_keys import KeyEntry
from presift.orchestrator.config.yaml_lines import InvalidYaml, read_document
from presift.orchestrator.domain.caller import TenantLimits
from presift.orchestrator.domain.request import TENANT_PATTERN
from presift.rpc.security.file_watcher import read_file

Tenant = Annotated[str, Field(pattern=TENANT_PATTERN)]
Count = Annotated[int, Strict(), Field(ge=1)]


def _day(value: object) -> date:
    """A date of YAML, or the same as text, as JSON has it."""
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise PydanticCustomError("day", "must be a date")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class KeySection(_Section):
    name: Annotated[str, Field(pattern=TENANT_PATTERN)]
    tenant: Tenant
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    admin: Annotated[bool, Strict()] = False
    expires: Annotated[date | None, BeforeValidator(_day)] = None


class TenantSection(_Section):
    tokens_per_minute: Count | None = None
    concurrency: Count | None = None


class FileSection(_Section):
    keys: tuple[KeySection, ...] = ()
    tenants: dict[Tenant, TenantSection] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keys:
    """The accepted keys, and the limits of tenants, however they authenticate."""

    entries: tuple[KeyEntry, ...] = field(default=(), repr=False)
    limits: Mapping[str, TenantLimits] = field(default_factory=dict)


def load_keys(path: Path) -> Keys:
    """Raises PresiftError, which names file and line."""
    return read_keys(read_file("api_keys_file", path), path.name)


def read_keys(raw: bytes, name: str) -> Keys:
    """Raises InvalidRequest, which names the place in file `name` and never quotes it: it may be a key."""
    try:
        document = read_document(raw.decode("utf-8-sig"))
        file = FileSection.model_validate({} if document.data is None else document.data)
    except UnicodeDecodeError:
        raise _refused(name, 1, "the file", "UTF-8") from None
    except InvalidYaml as error:  # its text may quote the file
        raise _refused(name, error.line, "the file", "YAML or JSON, no key given twice, no impossible date") from None
    except ValidationError as error:
        first = min(error.errors(include_url=False, include_input=False), key=lambda each: document.line(each["loc"]))
        place = ".".join(str(each) for each in first["loc"][:3] if not isinstance(each, str) or each in _NAMES)
        raise _refused(name, document.line(first["loc"]), place or "the file", _LIMITS.get(first["type"], "")) from None
    duplicates = [key for key, count in Counter(each.name for each in file.keys).items() if count > 1]
    if duplicates:
        raise _refused(name, 1, f"keys.name {duplicates[0]}", "given once")
    entries = tuple(KeyEntry(each.name, each.tenant, each.sha256, each.admin, each.expires) for each in file.keys)
    limits = {tenant: TenantLimits(each.tokens_per_minute, each.concurrency) for tenant, each in file.tenants.items()}
    return Keys(entries, limits)


_NAMES = {"keys", "tenants", "name", "tenant", "sha256", "admin", "expires", "tokens_per_minute", "concurrency"}
_LIMITS = {
    "extra_forbidden": "left out: there is no such key",
    "missing": "given",
    "string_pattern_mismatch": "a name of 1-64 of A-Z a-z 0-9 . _ -, or 64 lower-case hex digits",
    "greater_than_equal": ">= 1",
    "int_type": "an integer",
    "bool_type": "true or false",
    "day": "a date, such as 2027-06-30",
}


def _refused(name: str, line: int, place: str, limit: str) -> InvalidRequest:
    limit = limit or "of the right type"
    return InvalidRequest("api_keys_file", f"{name}:{line}", limit, f"{name}:{line}: {place} must be {limit}")
