"""The bodies of OpenAI requests as pydantic models: types are not guessed.

Unknown keys are ignored and their names collected, but under `presift` they are refused.
"""

from presift.orchestrator.api.http.schema.base import MAX_IGNORED, Ignored, Schema, add_ignored, validate
from presift.orchestrator.api.http.schema.bodies import Body, ChatBody, CommonBody, CompletionBody, StreamOptions
from presift.orchestrator.api.http.schema.messages import Message, Part
from presift.orchestrator.api.http.schema.options import (
    MAX_TIMEOUT_S,
    AutoCapacityOptions,
    BudgetOptions,
    ExplainOptions,
    KvOptions,
    PartReference,
    PresiftOptions,
    SamplingOptions,
    SpanOptions,
)

__all__ = [
    "MAX_IGNORED",
    "MAX_TIMEOUT_S",
    "AutoCapacityOptions",
    "Body",
    "BudgetOptions",
    "ChatBody",
    "CommonBody",
    "CompletionBody",
    "ExplainOptions",
    "Ignored",
    "KvOptions",
    "Message",
    "Part",
    "PartReference",
    "PresiftOptions",
    "SamplingOptions",
    "Schema",
    "SpanOptions",
    "StreamOptions",
    "add_ignored",
    "validate",
]
