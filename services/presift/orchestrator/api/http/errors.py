"""Decisions, usage and explanations as JSON: the protos' fields, with their enums by the short names of the client."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from presift.v1 import orchestrator_pb2

HEADER = "presift-decision"
_IN_HEADER = (
    *("route", "reason", "detail", "prompt_tokens", "kept_tokens", "kv_tokens", "protected_tokens", "coverage"),
    *("cache", "predicted_ttft_ms", "continued"),
)
# Proxies take a few kilobytes of headers.
_DETAIL_CHARACTERS = 512


def told(message: Message) -> dict[str, Any]:
    """Every field that is set, and those that are 0."""
    values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _named(message, values)


def in_header(decision: orchestrator_pb2.Decision) -> str:
    """What matters of a decision, compact, ASCII. The body has all of it."""
    values = told(decision)
    values["detail"] = values["detail"][:_DETAIL_CHARACTERS]
    return json.dumps({name: values[name] for name in _IN_HEADER if name in values}, separators=(",", ":"))


def _named(message: Message, values: dict[str, Any]) -> dict[str, Any]:
    for field in message.DESCRIPTOR.fields:
        if field.name not in values:
            continue
        if field.enum_type is not None:
            prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
            values[field.name] = str(values[field.name]).removeprefix(prefix).lower()
        elif field.message_type is not None:
            held = getattr(message, field.name)
            pairs = zip(held, values[field.name], strict=True) if field.is_repeated else [(held, values[field.name])]
            for each, value in pairs:
                _named(each, value)
    return values
