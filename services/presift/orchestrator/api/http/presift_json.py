"""Decisions, usage and explanations as JSON: protobuf's JSON of the gRPC messages, with the client's enum names.

They are rendered from the messages, not from the domain's values, so that both APIs have the same fields: protobuf's
rules decide which unset fields are left out and how many digits a 32-bit float has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from presift.orchestrator.api.grpc.responses import decision_to_wire, explanation_to_wire, report_to_wire
from presift.orchestrator.pipeline.events import Report
from presift.orchestrator.planning.explain import Explanation
from presift.orchestrator.routing.decision import Decision

DECISION_HEADER = "presift-decision"
_IN_HEADER = (
    *("route", "reason", "detail", "prompt_tokens", "kept_tokens", "kv_tokens", "protected_tokens", "coverage"),
    *("cache", "predicted_ttft_ms", "continued"),
)
# Proxies accept a few kilobytes of headers.
_DETAIL_CHARACTERS = 512


def presift_json(message: Message) -> dict[str, Any]:
    """Every field that is set, and zeros of fields that are always set."""
    values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _shorten_enums(message, values)


def _usage_json(report: Report) -> dict[str, Any]:
    """The usage of one answer. The log probabilities of its prompt are elsewhere in the body: they are left out before
    they become a message and JSON, which takes 10 KiB of memory a token."""
    without = replace(report, usage=replace(report.usage, prompt_logprobs=()))
    values = presift_json(report_to_wire(without))
    del values["prompt_logprobs"]  # empty
    return values


def presift_of_answers(reports: Sequence[Report], ignored: Sequence[str]) -> dict[str, Any]:
    """The `presift` object of a reply: the first answer's decision and usage and, if there are several, those of each;
    and the parameters that were ignored."""
    each = {"answers": [_answer_presift(report) for report in reports]} if len(reports) > 1 else {}
    return _answer_presift(reports[0]) | each | _ignored(ignored)


def presift_of_decision(decision: Decision) -> dict[str, Any]:
    """The `presift` object of a stream's first event."""
    return {"decision": presift_json(decision_to_wire(decision))}


def presift_of_explanation(explanation: Explanation, ignored: Sequence[str]) -> dict[str, Any]:
    """The `presift` object of a prompt that was only explained."""
    details = presift_json(explanation_to_wire(explanation))
    return {"decision": details.pop("decision"), "explanation": details} | _ignored(ignored)


def _answer_presift(report: Report) -> dict[str, Any]:
    return presift_of_decision(report.decision) | {"usage": _usage_json(report)}


def _ignored(names: Sequence[str]) -> dict[str, Any]:
    return {"ignored": list(names)} if names else {}


def decision_header(decision: Decision) -> str:
    """The main fields of a decision, compact and ASCII. The body has all of them."""
    values = presift_json(decision_to_wire(decision))
    values["detail"] = values["detail"][:_DETAIL_CHARACTERS]
    return json.dumps({name: values[name] for name in _IN_HEADER if name in values}, separators=(",", ":"))


def _shorten_enums(message: Message, values: dict[str, Any]) -> dict[str, Any]:
    """ROUTE_SPEC_PC -> spec_pc, in place and in all parts of the message."""
    for field in message.DESCRIPTOR.fields:
        if field.name not in values:
            continue
        if field.enum_type is not None:
            prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
            values[field.name] = str(values[field.name]).removeprefix(prefix).lower()
        elif field.message_type is not None:
            part = getattr(message, field.name)
            pairs = zip(part, values[field.name], strict=True) if field.is_repeated else [(part, values[field.name])]
            for each, value in pairs:
                _shorten_enums(each, value)
    return values
