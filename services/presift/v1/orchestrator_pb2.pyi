import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from presift.v1 import plan_pb2 as _plan_pb2
from presift.v1 import target_pb2 as _target_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvLookahead(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KV_LOOKAHEAD_UNSPECIFIED: _ClassVar[KvLookahead]
    KV_LOOKAHEAD_DRAFT: _ClassVar[KvLookahead]
    KV_LOOKAHEAD_TARGET: _ClassVar[KvLookahead]
    KV_LOOKAHEAD_AUTO: _ClassVar[KvLookahead]

class DecisionReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_REASON_UNSPECIFIED: _ClassVar[DecisionReason]
    DECISION_REASON_REQUESTED: _ClassVar[DecisionReason]
    DECISION_REASON_BELOW_THRESHOLD: _ClassVar[DecisionReason]
    DECISION_REASON_WITHIN_BUDGET: _ClassVar[DecisionReason]
    DECISION_REASON_OVER_BUDGET: _ClassVar[DecisionReason]
    DECISION_REASON_PROTECTED_OVER_BUDGET: _ClassVar[DecisionReason]
    DECISION_REASON_DRAFT_UNAVAILABLE: _ClassVar[DecisionReason]
    DECISION_REASON_DRAFT_OVERLOADED: _ClassVar[DecisionReason]
    DECISION_REASON_DRAFT_TIMEOUT: _ClassVar[DecisionReason]
    DECISION_REASON_DRAFT_CHANGED: _ClassVar[DecisionReason]
    DECISION_REASON_MASK_REJECTED: _ClassVar[DecisionReason]
    DECISION_REASON_KV_POOL_TOO_SMALL: _ClassVar[DecisionReason]
    DECISION_REASON_CHEAPEST: _ClassVar[DecisionReason]
    DECISION_REASON_BUDGET_NOT_MET: _ClassVar[DecisionReason]
    DECISION_REASON_COVERAGE_TOO_LOW: _ClassVar[DecisionReason]
    DECISION_REASON_ROUTE_SWITCHED_OFF: _ClassVar[DecisionReason]
    DECISION_REASON_DRAFT_CONTEXT_TOO_SMALL: _ClassVar[DecisionReason]
    DECISION_REASON_ONLY_PROTECTED_KEPT: _ClassVar[DecisionReason]

class CacheOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_OUTCOME_UNSPECIFIED: _ClassVar[CacheOutcome]
    CACHE_OUTCOME_NOT_USED: _ClassVar[CacheOutcome]
    CACHE_OUTCOME_HIT: _ClassVar[CacheOutcome]
    CACHE_OUTCOME_MISS: _ClassVar[CacheOutcome]
    CACHE_OUTCOME_SHARED: _ClassVar[CacheOutcome]
    CACHE_OUTCOME_UNAVAILABLE: _ClassVar[CacheOutcome]
KV_LOOKAHEAD_UNSPECIFIED: KvLookahead
KV_LOOKAHEAD_DRAFT: KvLookahead
KV_LOOKAHEAD_TARGET: KvLookahead
KV_LOOKAHEAD_AUTO: KvLookahead
DECISION_REASON_UNSPECIFIED: DecisionReason
DECISION_REASON_REQUESTED: DecisionReason
DECISION_REASON_BELOW_THRESHOLD: DecisionReason
DECISION_REASON_WITHIN_BUDGET: DecisionReason
DECISION_REASON_OVER_BUDGET: DecisionReason
DECISION_REASON_PROTECTED_OVER_BUDGET: DecisionReason
DECISION_REASON_DRAFT_UNAVAILABLE: DecisionReason
DECISION_REASON_DRAFT_OVERLOADED: DecisionReason
DECISION_REASON_DRAFT_TIMEOUT: DecisionReason
DECISION_REASON_DRAFT_CHANGED: DecisionReason
DECISION_REASON_MASK_REJECTED: DecisionReason
DECISION_REASON_KV_POOL_TOO_SMALL: DecisionReason
DECISION_REASON_CHEAPEST: DecisionReason
DECISION_REASON_BUDGET_NOT_MET: DecisionReason
DECISION_REASON_COVERAGE_TOO_LOW: DecisionReason
DECISION_REASON_ROUTE_SWITCHED_OFF: DecisionReason
DECISION_REASON_DRAFT_CONTEXT_TOO_SMALL: DecisionReason
DECISION_REASON_ONLY_PROTECTED_KEPT: DecisionReason
CACHE_OUTCOME_UNSPECIFIED: CacheOutcome
CACHE_OUTCOME_NOT_USED: CacheOutcome
CACHE_OUTCOME_HIT: CacheOutcome
CACHE_OUTCOME_MISS: CacheOutcome
CACHE_OUTCOME_SHARED: CacheOutcome
CACHE_OUTCOME_UNAVAILABLE: CacheOutcome

class Prompt(_message.Message):
    __slots__ = ("text", "chat", "token_ids", "protected_spans")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_SPANS_FIELD_NUMBER: _ClassVar[int]
    text: str
    chat: Chat
    token_ids: TokenIds
    protected_spans: _containers.RepeatedCompositeFieldContainer[_plan_pb2.Span]
    def __init__(self, text: _Optional[str] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., protected_spans: _Optional[_Iterable[_Union[_plan_pb2.Span, _Mapping]]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages", "tools_json", "template_kwargs_json", "continue_final_message")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_JSON_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_KWARGS_JSON_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    tools_json: _containers.RepeatedScalarFieldContainer[str]
    template_kwargs_json: str
    continue_final_message: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., tools_json: _Optional[_Iterable[str]] = ..., template_kwargs_json: _Optional[str] = ..., continue_final_message: _Optional[bool] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "parts", "protected", "tool_calls_json", "name", "tool_call_id", "reasoning")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_JSON_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    role: str
    parts: _containers.RepeatedCompositeFieldContainer[TextPart]
    protected: bool
    tool_calls_json: _containers.RepeatedScalarFieldContainer[str]
    name: str
    tool_call_id: str
    reasoning: str
    def __init__(self, role: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[TextPart, _Mapping]]] = ..., protected: _Optional[bool] = ..., tool_calls_json: _Optional[_Iterable[str]] = ..., name: _Optional[str] = ..., tool_call_id: _Optional[str] = ..., reasoning: _Optional[str] = ...) -> None: ...

class TextPart(_message.Message):
    __slots__ = ("text", "protected", "document")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    text: str
    protected: bool
    document: bool
    def __init__(self, text: _Optional[str] = ..., protected: _Optional[bool] = ..., document: _Optional[bool] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("max_prompt_tokens", "max_kv_tokens", "strict", "compress_above_tokens", "max_ttft_ms", "min_coverage", "auto_capacity")
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_ABOVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    AUTO_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    max_prompt_tokens: int
    max_kv_tokens: int
    strict: bool
    compress_above_tokens: int
    max_ttft_ms: int
    min_coverage: float
    auto_capacity: AutoCapacity
    def __init__(self, max_prompt_tokens: _Optional[int] = ..., max_kv_tokens: _Optional[int] = ..., strict: _Optional[bool] = ..., compress_above_tokens: _Optional[int] = ..., max_ttft_ms: _Optional[int] = ..., min_coverage: _Optional[float] = ..., auto_capacity: _Optional[_Union[AutoCapacity, _Mapping]] = ...) -> None: ...

class AutoCapacity(_message.Message):
    __slots__ = ("coverage", "min_tokens", "max_tokens")
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    coverage: float
    min_tokens: int
    max_tokens: int
    def __init__(self, coverage: _Optional[float] = ..., min_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "sampling", "budget", "route", "kv", "choices", "tool_choice", "tool_function", "single_tool_call", "raw_text", "migrate")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    TOOL_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    SINGLE_TOOL_CALL_FIELD_NUMBER: _ClassVar[int]
    RAW_TEXT_FIELD_NUMBER: _ClassVar[int]
    MIGRATE_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    sampling: _target_pb2.Sampling
    budget: Budget
    route: _plan_pb2.Route
    kv: KvOptions
    choices: int
    tool_choice: _target_pb2.ToolChoice
    tool_function: str
    single_tool_call: bool
    raw_text: bool
    migrate: bool
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling: _Optional[_Union[_target_pb2.Sampling, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., route: _Optional[_Union[_plan_pb2.Route, str]] = ..., kv: _Optional[_Union[KvOptions, _Mapping]] = ..., choices: _Optional[int] = ..., tool_choice: _Optional[_Union[_target_pb2.ToolChoice, str]] = ..., tool_function: _Optional[str] = ..., single_tool_call: _Optional[bool] = ..., raw_text: _Optional[bool] = ..., migrate: _Optional[bool] = ...) -> None: ...

class KvOptions(_message.Message):
    __slots__ = ("selection", "keep_full_prefix", "lookahead_tokens", "continue_prompt_tokens", "lookahead", "renew_every", "renew_window", "first_full_tokens")
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    KEEP_FULL_PREFIX_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    RENEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    RENEW_WINDOW_FIELD_NUMBER: _ClassVar[int]
    FIRST_FULL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    selection: _plan_pb2.KvSelection
    keep_full_prefix: bool
    lookahead_tokens: int
    continue_prompt_tokens: int
    lookahead: KvLookahead
    renew_every: int
    renew_window: int
    first_full_tokens: int
    def __init__(self, selection: _Optional[_Union[_plan_pb2.KvSelection, str]] = ..., keep_full_prefix: _Optional[bool] = ..., lookahead_tokens: _Optional[int] = ..., continue_prompt_tokens: _Optional[int] = ..., lookahead: _Optional[_Union[KvLookahead, str]] = ..., renew_every: _Optional[int] = ..., renew_window: _Optional[int] = ..., first_full_tokens: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("decision", "delta", "usage")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    delta: TextDelta
    usage: Usage
    def __init__(self, decision: _Optional[_Union[Decision, _Mapping]] = ..., delta: _Optional[_Union[TextDelta, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("route", "reason", "detail", "prompt_tokens", "kept_tokens", "kv_tokens", "protected_tokens", "coverage", "cache", "draft", "target", "policy", "tokenize_ms", "cache_ms", "draft_ms", "prefill_ms", "keep_full_prefix", "continued", "predicted_ttft_ms", "cross_vocabulary", "draft_cached_tokens", "lookahead")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_MS_FIELD_NUMBER: _ClassVar[int]
    CACHE_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FULL_PREFIX_FIELD_NUMBER: _ClassVar[int]
    CONTINUED_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    CROSS_VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    DRAFT_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    route: _plan_pb2.Route
    reason: DecisionReason
    detail: str
    prompt_tokens: int
    kept_tokens: int
    kv_tokens: int
    protected_tokens: int
    coverage: float
    cache: CacheOutcome
    draft: _plan_pb2.ModelInfo
    target: _plan_pb2.ModelInfo
    policy: _plan_pb2.Policy
    tokenize_ms: float
    cache_ms: float
    draft_ms: float
    prefill_ms: float
    keep_full_prefix: bool
    continued: bool
    predicted_ttft_ms: float
    cross_vocabulary: bool
    draft_cached_tokens: int
    lookahead: KvLookahead
    def __init__(self, route: _Optional[_Union[_plan_pb2.Route, str]] = ..., reason: _Optional[_Union[DecisionReason, str]] = ..., detail: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., kept_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., protected_tokens: _Optional[int] = ..., coverage: _Optional[float] = ..., cache: _Optional[_Union[CacheOutcome, str]] = ..., draft: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., target: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., policy: _Optional[_Union[_plan_pb2.Policy, _Mapping]] = ..., tokenize_ms: _Optional[float] = ..., cache_ms: _Optional[float] = ..., draft_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., keep_full_prefix: _Optional[bool] = ..., continued: _Optional[bool] = ..., predicted_ttft_ms: _Optional[float] = ..., cross_vocabulary: _Optional[bool] = ..., draft_cached_tokens: _Optional[int] = ..., lookahead: _Optional[_Union[KvLookahead, str]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("text", "token_ids", "choice", "reasoning", "tool_calls", "logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    choice: int
    reasoning: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[_target_pb2.ToolCallDelta]
    logprobs: _containers.RepeatedCompositeFieldContainer[_target_pb2.TokenLogprob]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., choice: _Optional[int] = ..., reasoning: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[_target_pb2.ToolCallDelta, _Mapping]]] = ..., logprobs: _Optional[_Iterable[_Union[_target_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "kept_tokens", "kv_tokens", "cached_tokens", "completion_tokens", "finish_reason", "target_ttft_ms", "ttft_ms", "total_ms", "reused_entry", "score_ms", "publish_ms", "coverage", "choice", "reasoning_tokens", "prompt_logprobs", "warnings", "renewals", "renewals_skipped", "accepted_tokens", "kv_tokens_peak", "kv_tokens_mean", "coverage_min", "migrated")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TARGET_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    REUSED_ENTRY_FIELD_NUMBER: _ClassVar[int]
    SCORE_MS_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_MS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    RENEWALS_FIELD_NUMBER: _ClassVar[int]
    RENEWALS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_PEAK_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_MEAN_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_MIN_FIELD_NUMBER: _ClassVar[int]
    MIGRATED_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    kept_tokens: int
    kv_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: _target_pb2.FinishReason
    target_ttft_ms: float
    ttft_ms: float
    total_ms: float
    reused_entry: bool
    score_ms: float
    publish_ms: float
    coverage: float
    choice: int
    reasoning_tokens: int
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_target_pb2.TokenLogprob]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    renewals: int
    renewals_skipped: int
    accepted_tokens: int
    kv_tokens_peak: int
    kv_tokens_mean: float
    coverage_min: float
    migrated: bool
    def __init__(self, prompt_tokens: _Optional[int] = ..., kept_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., finish_reason: _Optional[_Union[_target_pb2.FinishReason, str]] = ..., target_ttft_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., reused_entry: _Optional[bool] = ..., score_ms: _Optional[float] = ..., publish_ms: _Optional[float] = ..., coverage: _Optional[float] = ..., choice: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_target_pb2.TokenLogprob, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., renewals: _Optional[int] = ..., renewals_skipped: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., kv_tokens_peak: _Optional[int] = ..., kv_tokens_mean: _Optional[float] = ..., coverage_min: _Optional[float] = ..., migrated: _Optional[bool] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("prompt", "budget", "route", "kv", "include_kv_mask", "span_per_token", "max_new_tokens")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_KV_MASK_FIELD_NUMBER: _ClassVar[int]
    SPAN_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    budget: Budget
    route: _plan_pb2.Route
    kv: KvOptions
    include_kv_mask: bool
    span_per_token: bool
    max_new_tokens: int
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., route: _Optional[_Union[_plan_pb2.Route, str]] = ..., kv: _Optional[_Union[KvOptions, _Mapping]] = ..., include_kv_mask: _Optional[bool] = ..., span_per_token: _Optional[bool] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("decision", "spans", "kv_mask", "target_coverage", "text", "routes")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    KV_MASK_FIELD_NUMBER: _ClassVar[int]
    TARGET_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    spans: _containers.RepeatedCompositeFieldContainer[ExplainedSpan]
    kv_mask: _plan_pb2.KvMask
    target_coverage: float
    text: str
    routes: _containers.RepeatedCompositeFieldContainer[RouteForecast]
    def __init__(self, decision: _Optional[_Union[Decision, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[ExplainedSpan, _Mapping]]] = ..., kv_mask: _Optional[_Union[_plan_pb2.KvMask, _Mapping]] = ..., target_coverage: _Optional[float] = ..., text: _Optional[str] = ..., routes: _Optional[_Iterable[_Union[RouteForecast, _Mapping]]] = ...) -> None: ...

class RouteForecast(_message.Message):
    __slots__ = ("route", "ttft_ms", "draft_ms", "target_ms", "step_ms", "read_tokens", "kv_tokens", "met", "why_not", "chosen")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    TARGET_MS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    WHY_NOT_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    route: _plan_pb2.Route
    ttft_ms: float
    draft_ms: float
    target_ms: float
    step_ms: float
    read_tokens: int
    kv_tokens: int
    met: bool
    why_not: str
    chosen: bool
    def __init__(self, route: _Optional[_Union[_plan_pb2.Route, str]] = ..., ttft_ms: _Optional[float] = ..., draft_ms: _Optional[float] = ..., target_ms: _Optional[float] = ..., step_ms: _Optional[float] = ..., read_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., met: _Optional[bool] = ..., why_not: _Optional[str] = ..., chosen: _Optional[bool] = ...) -> None: ...

class ExplainedSpan(_message.Message):
    __slots__ = ("tokens", "characters", "kept", "protected", "importance", "kept_share")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_FIELD_NUMBER: _ClassVar[int]
    KEPT_SHARE_FIELD_NUMBER: _ClassVar[int]
    tokens: _plan_pb2.Span
    characters: _plan_pb2.Span
    kept: bool
    protected: bool
    importance: float
    kept_share: float
    def __init__(self, tokens: _Optional[_Union[_plan_pb2.Span, _Mapping]] = ..., characters: _Optional[_Union[_plan_pb2.Span, _Mapping]] = ..., kept: _Optional[bool] = ..., protected: _Optional[bool] = ..., importance: _Optional[float] = ..., kept_share: _Optional[float] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("draft", "target", "supported_routes", "compress_above_tokens", "speeds", "route_quality", "policy_file", "replicas", "tool_call_parser", "reasoning_parser", "grammars", "cache_unavailable", "restricted", "engine")
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_ROUTES_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_ABOVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPEEDS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_QUALITY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FILE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_PARSER_FIELD_NUMBER: _ClassVar[int]
    REASONING_PARSER_FIELD_NUMBER: _ClassVar[int]
    GRAMMARS_FIELD_NUMBER: _ClassVar[int]
    CACHE_UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    RESTRICTED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    draft: _plan_pb2.ModelInfo
    target: _plan_pb2.ModelInfo
    supported_routes: _containers.RepeatedScalarFieldContainer[_plan_pb2.Route]
    compress_above_tokens: int
    speeds: _containers.RepeatedCompositeFieldContainer[StageSpeed]
    route_quality: _containers.RepeatedCompositeFieldContainer[RouteQuality]
    policy_file: PolicyFile
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    tool_call_parser: str
    reasoning_parser: str
    grammars: bool
    cache_unavailable: bool
    restricted: bool
    engine: str
    def __init__(self, draft: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., target: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., supported_routes: _Optional[_Iterable[_Union[_plan_pb2.Route, str]]] = ..., compress_above_tokens: _Optional[int] = ..., speeds: _Optional[_Iterable[_Union[StageSpeed, _Mapping]]] = ..., route_quality: _Optional[_Iterable[_Union[RouteQuality, _Mapping]]] = ..., policy_file: _Optional[_Union[PolicyFile, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., tool_call_parser: _Optional[str] = ..., reasoning_parser: _Optional[str] = ..., grammars: _Optional[bool] = ..., cache_unavailable: _Optional[bool] = ..., restricted: _Optional[bool] = ..., engine: _Optional[str] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("address", "role", "healthy", "breaker", "in_flight", "unused", "name")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    UNUSED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    address: str
    role: str
    healthy: bool
    breaker: str
    in_flight: int
    unused: str
    name: str
    def __init__(self, address: _Optional[str] = ..., role: _Optional[str] = ..., healthy: _Optional[bool] = ..., breaker: _Optional[str] = ..., in_flight: _Optional[int] = ..., unused: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class PolicyFile(_message.Message):
    __slots__ = ("digest", "loaded_at")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    loaded_at: _timestamp_pb2.Timestamp
    def __init__(self, digest: _Optional[str] = ..., loaded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RouteQuality(_message.Message):
    __slots__ = ("route", "min_tokens", "max_tokens", "samples", "mean_overlap", "exact_share", "mean_first_divergence", "switched_off", "since", "mean_agreement", "mean_fact_share")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MEAN_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    EXACT_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIRST_DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    SWITCHED_OFF_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    MEAN_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MEAN_FACT_SHARE_FIELD_NUMBER: _ClassVar[int]
    route: _plan_pb2.Route
    min_tokens: int
    max_tokens: int
    samples: int
    mean_overlap: float
    exact_share: float
    mean_first_divergence: float
    switched_off: bool
    since: _timestamp_pb2.Timestamp
    mean_agreement: float
    mean_fact_share: float
    def __init__(self, route: _Optional[_Union[_plan_pb2.Route, str]] = ..., min_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., samples: _Optional[int] = ..., mean_overlap: _Optional[float] = ..., exact_share: _Optional[float] = ..., mean_first_divergence: _Optional[float] = ..., switched_off: _Optional[bool] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., mean_agreement: _Optional[float] = ..., mean_fact_share: _Optional[float] = ...) -> None: ...

class StageSpeed(_message.Message):
    __slots__ = ("stage", "model", "replica", "call_ms", "token_ms", "megapair_ms", "step_ms", "observations", "contention", "early_renewals")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CALL_MS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    MEGAPAIR_MS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    CONTENTION_FIELD_NUMBER: _ClassVar[int]
    EARLY_RENEWALS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    model: str
    replica: str
    call_ms: float
    token_ms: float
    megapair_ms: float
    step_ms: float
    observations: int
    contention: float
    early_renewals: float
    def __init__(self, stage: _Optional[str] = ..., model: _Optional[str] = ..., replica: _Optional[str] = ..., call_ms: _Optional[float] = ..., token_ms: _Optional[float] = ..., megapair_ms: _Optional[float] = ..., step_ms: _Optional[float] = ..., observations: _Optional[int] = ..., contention: _Optional[float] = ..., early_renewals: _Optional[float] = ...) -> None: ...
