"""Reads a policy file: YAML to override rules. Each error names its line: `policy.yaml:12: bands[1].capacity: ...`."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.orchestrator.config.overrides import (
    Override,
    OverrideBand,
    OverrideLevel,
    OverrideRules,
    OverrideTable,
    invalid_band,
)
from presift.orchestrator.config.policy_schema import KEYS, KeysMapping, LevelMapping, PolicyFileMapping
from presift.orchestrator.config.policy_settings import PolicySettings, policy_defaults
from presift.orchestrator.config.yaml_lines import Document, InvalidYaml, read_document
from presift.orchestrator.domain.request import Budget

KeyPath = tuple[str | int, ...]
# The parser is pure Python: 1 MiB takes seconds.
MAX_BYTES = 1_048_576
# pydantic's own texts for these errors name its classes.
_MESSAGES = {"extra_forbidden": "unknown key", "model_type": "must be a mapping"}


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file that was read. `digest` is the SHA-256 of its bytes, hexadecimal."""

    table: OverrideTable
    digest: str
    loaded_at: datetime


class _InvalidValue(Exception):
    def __init__(self, path: KeyPath, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


def load_policy_file(path: Path, settings: PolicySettings) -> PolicyFile:
    """Raises InvalidRequest, which names file, line, key, value and limit."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidRequest("policy_file", path, "a file", f"{path}: {error.strerror}") from None
    rules = read_rules(raw, path.name, settings)
    table = OverrideTable(partial(policy_defaults, settings), rules)
    return PolicyFile(table, hashlib.sha256(raw).hexdigest(), datetime.now(UTC))


def read_rules(raw: bytes, name: str, settings: PolicySettings) -> OverrideRules:
    """The rules in `raw`, the content of the file `name`. Raises InvalidRequest like `load_policy_file`."""
    if len(raw) > MAX_BYTES:
        raise InvalidRequest("policy_file", name, f"at most {MAX_BYTES} bytes", f"{name}: more than {MAX_BYTES} bytes")
    try:
        document = read_document(raw.decode("utf-8-sig"))
        return _rules(document, settings)
    except UnicodeDecodeError as error:
        line, where, message = raw.count(b"\n", 0, error.start) + 1, "encoding", "not UTF-8"
    except InvalidYaml as error:
        line, where, message = error.line, "YAML", str(error)
    except _InvalidValue as error:
        line, where, message = document.line(error.path), _key_text(error.path), error.message
    raise InvalidRequest("policy_file", f"{name}:{line}", message, f"{name}:{line}: {where}: {message}")


def _rules(document: Document, settings: PolicySettings) -> OverrideRules:
    try:
        file = PolicyFileMapping.model_validate({} if document.data is None else document.data)
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda each: document.line(each["loc"]))
        message = f"{_MESSAGES.get(first['type'], first['msg'])} (it is {reprlib.repr(first['input'])})"
        raise _InvalidValue(first["loc"], message) from None
    everyone = _level(file, (), settings)
    models, tenants = (
        {name: _level(level, (kind, name), settings) for name, level in levels.items()}
        for kind, levels in (("models", file.models), ("tenants", file.tenants))
    )
    return OverrideRules(everyone, models, tenants)


def _level(level: LevelMapping, path: KeyPath, settings: PolicySettings) -> OverrideLevel:
    bands = tuple(
        OverrideBand(band.up_to_tokens, _changes(band, (*path, "bands", i), settings))
        for i, band in enumerate(level.bands)
    )
    if found := invalid_band(bands):
        i, limit = found
        raise _InvalidValue((*path, "bands", i, "up_to_tokens"), f"must be {limit} (it is {bands[i].up_to_tokens})")
    return OverrideLevel(_changes(level, path, settings), bands)


def _changes(mapping: KeysMapping, path: KeyPath, settings: PolicySettings) -> Override:
    """Checks each key alone against settings that no file can change. So every combination of keys is valid too."""
    changes = {name: getattr(mapping, name) for name in KEYS if name in mapping.model_fields_set}
    for name, value in changes.items():
        with _naming((*path, name)):
            policy_defaults(settings, {name: value})
    budget = mapping.budget.model_dump(exclude_unset=True)
    for name, value in budget.items():
        with _naming((*path, "budget", name)):
            _check_limit(Budget(**{name: value}), settings)
    return Override(changes, budget)


def _check_limit(budget: Budget, settings: PolicySettings) -> None:
    """Raise InvalidRequest for a limit below the windows: it would refuse callers who set no budget."""
    tokens, least = settings.window, max(settings.window, settings.kv_window + 2)
    if budget.max_prompt_tokens is not None and budget.max_prompt_tokens < tokens:
        raise InvalidRequest("budget.max_prompt_tokens", budget.max_prompt_tokens, f">= {tokens} (window)")
    if budget.max_kv_tokens is not None and budget.max_kv_tokens < least:
        raise InvalidRequest("budget.max_kv_tokens", budget.max_kv_tokens, f">= {least} (window, kv_window + 2)")


@contextmanager
def _naming(path: KeyPath) -> Iterator[None]:
    """Adds the key to an InvalidRequest from inside."""
    try:
        yield
    except InvalidRequest as error:
        raise _InvalidValue(path, f"must be {error.limit} (it is {error.value})") from None


def _key_text(path: KeyPath) -> str:
    """For example `bands[1].capacity`."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path if part != "[key]")
    return parts.removeprefix(".") or "the file"
