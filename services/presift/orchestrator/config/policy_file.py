"""The policy file: YAML bytes to rules, every fault with its line: `policy.yaml:12: bands[1].capacity: ...`."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.orchestrator.config.overrides import (
    Override,
    OverrideBand,
    OverrideLevel,
    OverrideRules,
    OverrideTable,
    misplaced,
)
from presift.orchestrator.config.policy_schema import KEYS, FilePart, KeysPart, LevelPart
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.config.yaml_lines import BadYaml, Document, read_document
from presift.orchestrator.domain.request import Budget

Place = tuple[str | int, ...]
# Parsed in pure Python: a megabyte takes seconds.
MAX_BYTES = 1_048_576
# pydantic's words for these speak of its own classes.
_WORDS = {"extra_forbidden": "there is no such key", "model_type": "must be a mapping"}


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A file that was read: its terms, the SHA-256 of its bytes (hexadecimal), and when."""

    terms: OverrideTable
    digest: str
    loaded_at: datetime


class _Fault(Exception):
    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


def load_policy_file(path: Path, settings: OrchestratorSettings) -> PolicyFile:
    """Raises InvalidRequest, naming file, line, key, value and limit."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidRequest("policy_file", path, "a file", f"{path}: {error.strerror}") from None
    rules = read_rules(raw, path.name, settings)
    return PolicyFile(OverrideTable(settings.defaults_with, rules), hashlib.sha256(raw).hexdigest(), datetime.now(UTC))


def read_rules(raw: bytes, name: str, settings: OrchestratorSettings) -> OverrideRules:
    """Raises InvalidRequest as `load_policy_file`; `name` is what it calls the file."""
    if len(raw) > MAX_BYTES:
        raise InvalidRequest("policy_file", name, f"at most {MAX_BYTES} bytes", f"{name}: more than {MAX_BYTES} bytes")
    try:
        document = read_document(raw.decode("utf-8-sig"))
        return _rules(document, settings)
    except UnicodeDecodeError as error:
        line, place, message = raw.count(b"\n", 0, error.start) + 1, "encoding", "not UTF-8"
    except BadYaml as error:
        line, place, message = error.line, "YAML", str(error)
    except _Fault as fault:
        line, place, message = document.line(fault.place), _told(fault.place), fault.message
    raise InvalidRequest("policy_file", f"{name}:{line}", message, f"{name}:{line}: {place}: {message}")


def _rules(document: Document, settings: OrchestratorSettings) -> OverrideRules:
    try:
        file = FilePart.model_validate({} if document.data is None else document.data)
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda each: document.line(each["loc"]))
        raise _Fault(
            first["loc"], f"{_WORDS.get(first['type'], first['msg'])} (it is {reprlib.repr(first['input'])})"
        ) from None
    everyone = _level(file, (), settings)
    models, tenants = (
        {name: _level(level, (kind, name), settings) for name, level in levels.items()}
        for kind, levels in (("models", file.models), ("tenants", file.tenants))
    )
    return OverrideRules(everyone, models, tenants)


def _level(level: LevelPart, place: Place, settings: OrchestratorSettings) -> OverrideLevel:
    bands = tuple(
        OverrideBand(band.up_to_tokens, _changes(band, (*place, "bands", i), settings))
        for i, band in enumerate(level.bands)
    )
    if found := misplaced(bands):
        i, limit = found
        raise _Fault((*place, "bands", i, "up_to_tokens"), f"must be {limit} (it is {bands[i].up_to_tokens})")
    return OverrideLevel(_changes(level, place, settings), bands)


def _changes(part: KeysPart, place: Place, settings: OrchestratorSettings) -> Override:
    """Each key is checked alone, beside settings that the file cannot change: so it holds in any combination."""
    given = {name: getattr(part, name) for name in KEYS if name in part.model_fields_set}
    for name, value in given.items():
        with _placed((*place, name)):
            settings.defaults_with({name: value})
    budget = part.budget.model_dump(exclude_unset=True)
    for name, value in budget.items():
        with _placed((*place, "budget", name)):
            _check_limit(Budget(**{name: value}), settings)
    return Override(given, budget)


def _check_limit(budget: Budget, settings: OrchestratorSettings) -> None:
    """Raise InvalidRequest for a limit below the windows: it would refuse callers who asked for nothing."""
    tokens, least = settings.window, max(settings.window, settings.kv_window + 2)
    if budget.max_prompt_tokens is not None and budget.max_prompt_tokens < tokens:
        raise InvalidRequest("budget.max_prompt_tokens", budget.max_prompt_tokens, f">= {tokens} (window)")
    if budget.max_kv_tokens is not None and budget.max_kv_tokens < least:
        raise InvalidRequest("budget.max_kv_tokens", budget.max_kv_tokens, f">= {least} (window, kv_window + 2)")


@contextmanager
def _placed(place: Place) -> Iterator[None]:
    try:
        yield
    except InvalidRequest as error:
        raise _Fault(place, f"must be {error.limit} (it is {error.value})") from None


def _told(place: Place) -> str:
    """`bands[1].capacity`"""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if part != "[key]")
    return parts.removeprefix(".") or "the file"
