"""What a service logs: lines of text, or JSON objects with the ids of the trace that they belong to. Never a prompt."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import Any

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_TOLD = ("time", "level", "logger", "message", "exc_info")


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class _OneLine(JsonFormatter):
    """time, level, logger, message, trace_id and span_id (both empty outside of a request), exc_info where there is."""

    def __init__(self) -> None:
        names = {"levelname": "level", "name": "logger"}
        super().__init__("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="time")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        # What was given to `log` beside its message is not told: it could be anything.
        told = {key: log_data[key] for key in _TOLD if key in log_data}
        return told | _trace()


def set_up(level: str, look: LogFormat) -> None:
    """Log to stderr from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine() if look is LogFormat.JSON else logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler])


def _trace() -> dict[str, str]:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {"trace_id": "", "span_id": ""}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
