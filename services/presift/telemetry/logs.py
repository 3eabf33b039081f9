"""Logging: lines of text, or JSON objects with trace ids. Prompts are never logged."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from presift.telemetry.log_writer import LogWriter
from presift.telemetry.request_id import request_id

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_STDERR = 2
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FIELDS = ("time", "level", "logger", "message", "exc_info")


def _ignore() -> None:
    return None


class LogFormat(StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


class _Text(logging.Formatter):
    """Of a message control characters are escaped: a text of another service could otherwise forge a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], super().formatMessage(record))


class _OneLine(JsonFormatter):
    """time, level, logger, message, trace_id and span_id (both empty outside a request), and exc_info if any. Within an
    HTTP request also request_id."""

    def __init__(self) -> None:
        names = {"levelname": "level", "name": "logger"}
        super().__init__("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="time")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        # Drops other fields, such as `extra` of a library's call: they could contain anything.
        logged = {key: log_data[key] for key in _FIELDS if key in log_data}
        current = request_id.get()
        return logged | _trace() | ({"request_id": current} if current else {})


def set_up(level: str, look: LogFormat, on_drop: Callable[[], None] = _ignore) -> None:
    """Log to stderr at `level` and above. If stderr is not read, lines are dropped: `on_drop` is called for each."""
    handler = LogWriter(_STDERR, on_drop)
    handler.setFormatter(_OneLine() if look is LogFormat.JSON else _Text(_TEXT))
    logging.basicConfig(level=level, handlers=[handler])


def _trace() -> dict[str, str]:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {"trace_id": "", "span_id": ""}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
