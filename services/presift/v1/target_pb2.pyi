from presift.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ToolChoice(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOOL_CHOICE_UNSPECIFIED: _ClassVar[ToolChoice]
    TOOL_CHOICE_AUTO: _ClassVar[ToolChoice]
    TOOL_CHOICE_REQUIRED: _ClassVar[ToolChoice]
    TOOL_CHOICE_FUNCTION: _ClassVar[ToolChoice]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_TOOL_CALLS: _ClassVar[FinishReason]
TOOL_CHOICE_UNSPECIFIED: ToolChoice
TOOL_CHOICE_AUTO: ToolChoice
TOOL_CHOICE_REQUIRED: ToolChoice
TOOL_CHOICE_FUNCTION: ToolChoice
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_TOOL_CALLS: FinishReason

class Sampling(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "min_new_tokens", "json_schema", "regex", "ebnf", "structural_tag", "top_logprobs", "prompt_logprobs", "keep_special_tokens")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    EBNF_FIELD_NUMBER: _ClassVar[int]
    STRUCTURAL_TAG_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    KEEP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    min_new_tokens: int
    json_schema: str
    regex: str
    ebnf: str
    structural_tag: str
    top_logprobs: int
    prompt_logprobs: bool
    keep_special_tokens: bool
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., min_p: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., min_new_tokens: _Optional[int] = ..., json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., ebnf: _Optional[str] = ..., structural_tag: _Optional[str] = ..., top_logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[bool] = ..., keep_special_tokens: _Optional[bool] = ...) -> None: ...

class AnswerFormat(_message.Message):
    __slots__ = ("tools_json", "tool_choice", "function", "single_call", "separate_reasoning", "template_kwargs_json")
    TOOLS_JSON_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    SINGLE_CALL_FIELD_NUMBER: _ClassVar[int]
    SEPARATE_REASONING_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_KWARGS_JSON_FIELD_NUMBER: _ClassVar[int]
    tools_json: _containers.RepeatedScalarFieldContainer[str]
    tool_choice: ToolChoice
    function: str
    single_call: bool
    separate_reasoning: bool
    template_kwargs_json: str
    def __init__(self, tools_json: _Optional[_Iterable[str]] = ..., tool_choice: _Optional[_Union[ToolChoice, str]] = ..., function: _Optional[str] = ..., single_call: _Optional[bool] = ..., separate_reasoning: _Optional[bool] = ..., template_kwargs_json: _Optional[str] = ...) -> None: ...

class TargetServiceGenerateRequest(_message.Message):
    __slots__ = ("token_ids", "sampling", "cache_salt", "kv_plan", "format")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    KV_PLAN_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    cache_salt: str
    kv_plan: KvPlan
    format: AnswerFormat
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., cache_salt: _Optional[str] = ..., kv_plan: _Optional[_Union[KvPlan, _Mapping]] = ..., format: _Optional[_Union[AnswerFormat, _Mapping]] = ...) -> None: ...

class KvPlan(_message.Message):
    __slots__ = ("policy", "protected_spans", "lookahead_token_ids", "kv_mask", "keep_full_prefix", "prompt_tokens", "report_kept")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_SPANS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    KV_MASK_FIELD_NUMBER: _ClassVar[int]
    KEEP_FULL_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPORT_KEPT_FIELD_NUMBER: _ClassVar[int]
    policy: _plan_pb2.SpecKv
    protected_spans: _containers.RepeatedCompositeFieldContainer[_plan_pb2.Span]
    lookahead_token_ids: _containers.RepeatedScalarFieldContainer[int]
    kv_mask: _plan_pb2.KvMask
    keep_full_prefix: bool
    prompt_tokens: int
    report_kept: bool
    def __init__(self, policy: _Optional[_Union[_plan_pb2.SpecKv, _Mapping]] = ..., protected_spans: _Optional[_Iterable[_Union[_plan_pb2.Span, _Mapping]]] = ..., lookahead_token_ids: _Optional[_Iterable[int]] = ..., kv_mask: _Optional[_Union[_plan_pb2.KvMask, _Mapping]] = ..., keep_full_prefix: _Optional[bool] = ..., prompt_tokens: _Optional[int] = ..., report_kept: _Optional[bool] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("token_ids", "cache_salt")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("cached_tokens", "total_ms")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    total_ms: float
    def __init__(self, cached_tokens: _Optional[int] = ..., total_ms: _Optional[float] = ...) -> None: ...

class TargetServiceGenerateResponse(_message.Message):
    __slots__ = ("delta", "usage")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    delta: TokenDelta
    usage: TargetUsage
    def __init__(self, delta: _Optional[_Union[TokenDelta, _Mapping]] = ..., usage: _Optional[_Union[TargetUsage, _Mapping]] = ...) -> None: ...

class TokenDelta(_message.Message):
    __slots__ = ("token_ids", "logprobs", "parsed")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PARSED_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    parsed: ParsedText
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., parsed: _Optional[_Union[ParsedText, _Mapping]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob", "top")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class ParsedText(_message.Message):
    __slots__ = ("content", "reasoning", "tool_calls")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    content: str
    reasoning: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCallDelta]
    def __init__(self, content: _Optional[str] = ..., reasoning: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCallDelta, _Mapping]]] = ...) -> None: ...

class ToolCallDelta(_message.Message):
    __slots__ = ("index", "id", "name", "arguments")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    name: str
    arguments: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class TargetUsage(_message.Message):
    __slots__ = ("prompt_tokens", "kv_tokens", "cached_tokens", "completion_tokens", "finish_reason", "ttft_ms", "total_ms", "reused_entry", "score_ms", "publish_ms", "coverage", "kv_mask", "load", "replica", "reasoning_tokens", "prompt_logprobs", "renewals", "renewals_skipped", "accepted_tokens", "kv_tokens_peak", "kv_tokens_mean", "coverage_min")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    REUSED_ENTRY_FIELD_NUMBER: _ClassVar[int]
    SCORE_MS_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_MS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    KV_MASK_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RENEWALS_FIELD_NUMBER: _ClassVar[int]
    RENEWALS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_PEAK_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_MEAN_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_MIN_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    kv_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    ttft_ms: float
    total_ms: float
    reused_entry: bool
    score_ms: float
    publish_ms: float
    coverage: float
    kv_mask: _plan_pb2.KvMask
    load: TargetLoad
    replica: str
    reasoning_tokens: int
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    renewals: int
    renewals_skipped: int
    accepted_tokens: int
    kv_tokens_peak: int
    kv_tokens_mean: float
    coverage_min: float
    def __init__(self, prompt_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., ttft_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., reused_entry: _Optional[bool] = ..., score_ms: _Optional[float] = ..., publish_ms: _Optional[float] = ..., coverage: _Optional[float] = ..., kv_mask: _Optional[_Union[_plan_pb2.KvMask, _Mapping]] = ..., load: _Optional[_Union[TargetLoad, _Mapping]] = ..., replica: _Optional[str] = ..., reasoning_tokens: _Optional[int] = ..., prompt_logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., renewals: _Optional[int] = ..., renewals_skipped: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., kv_tokens_peak: _Optional[int] = ..., kv_tokens_mean: _Optional[float] = ..., coverage_min: _Optional[float] = ...) -> None: ...

class TargetLoad(_message.Message):
    __slots__ = ("running", "waiting", "free_kv_tokens")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FREE_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    free_kv_tokens: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., free_kv_tokens: _Optional[int] = ...) -> None: ...

class TargetServiceGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetServiceGetInfoResponse(_message.Message):
    __slots__ = ("model", "engine", "supported_routes", "running_requests", "unsupported_routes", "kv_page_tokens", "kv_pool_tokens", "load", "replica", "tool_call_parser", "reasoning_parser", "grammars")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_ROUTES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_ROUTES_FIELD_NUMBER: _ClassVar[int]
    KV_PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_POOL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_PARSER_FIELD_NUMBER: _ClassVar[int]
    REASONING_PARSER_FIELD_NUMBER: _ClassVar[int]
    GRAMMARS_FIELD_NUMBER: _ClassVar[int]
    model: _plan_pb2.ModelInfo
    engine: str
    supported_routes: _containers.RepeatedScalarFieldContainer[_plan_pb2.Route]
    running_requests: int
    unsupported_routes: _containers.RepeatedCompositeFieldContainer[UnsupportedRoute]
    kv_page_tokens: int
    kv_pool_tokens: int
    load: TargetLoad
    replica: str
    tool_call_parser: str
    reasoning_parser: str
    grammars: bool
    def __init__(self, model: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., engine: _Optional[str] = ..., supported_routes: _Optional[_Iterable[_Union[_plan_pb2.Route, str]]] = ..., running_requests: _Optional[int] = ..., unsupported_routes: _Optional[_Iterable[_Union[UnsupportedRoute, _Mapping]]] = ..., kv_page_tokens: _Optional[int] = ..., kv_pool_tokens: _Optional[int] = ..., load: _Optional[_Union[TargetLoad, _Mapping]] = ..., replica: _Optional[str] = ..., tool_call_parser: _Optional[str] = ..., reasoning_parser: _Optional[str] = ..., grammars: _Optional[bool] = ...) -> None: ...

class UnsupportedRoute(_message.Message):
    __slots__ = ("route", "reason")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    route: _plan_pb2.Route
    reason: str
    def __init__(self, route: _Optional[_Union[_plan_pb2.Route, str]] = ..., reason: _Optional[str] = ...) -> None: ...
