"""`presift`: what OpenAI has no parameter for. The names are those of the protos; unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from presift.core.limits import MAX_SPANS
from presift.core.plan import Route
from presift.core.policies import KvSelection
from presift.orchestrator.api.http.schema.base import Schema
from presift.orchestrator.api.http.schema.values import JsonDocument, OptionFloat32, TokenIdList, UInt32, named
from presift.orchestrator.domain.limits import MAX_PARTS
from presift.orchestrator.domain.request import KvLookahead

# Seconds: a day. Clocks and timers accept more, but not without bound.
MAX_TIMEOUT_S = 86_400


class PartReference(Schema):
    """A message by its number (negative: from the end) and one of its parts; None is all of them."""

    message: int
    part: Annotated[int | None, Field(ge=0)] = None


PartReferences = Annotated[list[PartReference], Field(max_length=MAX_PARTS, fail_fast=True)]


class AutoCapacityOptions(Schema):
    """As in presift.v1.AutoCapacity."""

    coverage: OptionFloat32 = 0.0
    min_tokens: UInt32 = 0
    max_tokens: UInt32 = 0


class BudgetOptions(Schema):
    """As in presift.v1.Budget."""

    max_prompt_tokens: UInt32 | None = None
    max_kv_tokens: UInt32 | None = None
    strict: bool = False
    compress_above_tokens: UInt32 | None = None
    max_ttft_ms: UInt32 | None = None
    min_coverage: OptionFloat32 | None = None
    auto_capacity: AutoCapacityOptions | None = None


class KvOptions(Schema):
    """As in presift.v1.KvOptions."""

    selection: Annotated[KvSelection | None, named("KV_SELECTION_", {each.value: each for each in KvSelection})] = None
    keep_full_prefix: bool | None = None
    lookahead_tokens: UInt32 | None = None
    continue_prompt_tokens: UInt32 | None = None
    lookahead: Annotated[KvLookahead | None, named("KV_LOOKAHEAD_", {each.value: each for each in KvLookahead})] = None
    renew_every: UInt32 | None = None
    renew_window: UInt32 | None = None
    first_full_tokens: UInt32 | None = None


class SamplingOptions(Schema):
    """The fields of presift.v1.Sampling that OpenAI has no parameter for."""

    top_k: UInt32 | None = None
    stop_token_ids: TokenIdList | None = None
    ignore_eos: bool | None = None
    min_p: OptionFloat32 | None = None
    repetition_penalty: OptionFloat32 | None = None
    min_new_tokens: UInt32 | None = None
    json_schema: JsonDocument | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: JsonDocument | None = None
    keep_special_tokens: bool | None = None


class SpanOptions(Schema):
    """As in presift.v1.Span."""

    start: UInt32 = 0
    end: UInt32 = 0


class ExplainOptions(Schema):
    include_kv_mask: bool = False
    span_per_token: bool = False


def _as_explain(explain: Any) -> Any:
    return {True: {}, False: None}[explain] if isinstance(explain, bool) else explain


class PresiftOptions(Schema):
    """`presift`."""

    route: Annotated[Route | None, named("ROUTE_", {"auto": None} | {each.value: each for each in Route})] = None
    budget: BudgetOptions = BudgetOptions()
    kv: KvOptions = KvOptions()
    sampling: SamplingOptions = SamplingOptions()
    protected_spans: Annotated[list[SpanOptions], Field(max_length=MAX_SPANS, fail_fast=True)] = Field(
        default_factory=list
    )
    protected: PartReferences = Field(default_factory=list)
    documents: PartReferences = Field(default_factory=list)
    explain: Annotated[
        ExplainOptions | None, BeforeValidator(_as_explain, json_schema_input_type=bool | ExplainOptions | None)
    ] = None
    token_ids: bool = False
    migrate: bool = False
    timeout_s: Annotated[float | None, Field(gt=0, le=MAX_TIMEOUT_S)] = None
