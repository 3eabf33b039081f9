from presift.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class Sampling(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ...) -> None: ...

class TargetServiceGenerateRequest(_message.Message):
    __slots__ = ("token_ids", "sampling", "cache_salt", "kv_plan")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    KV_PLAN_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    cache_salt: str
    kv_plan: KvPlan
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., cache_salt: _Optional[str] = ..., kv_plan: _Optional[_Union[KvPlan, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TargetUsage(_message.Message):
    __slots__ = ("prompt_tokens", "kv_tokens", "cached_tokens", "completion_tokens", "finish_reason", "ttft_ms", "total_ms", "reused_entry", "score_ms", "publish_ms", "coverage", "kv_mask", "load", "replica")
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
    def __init__(self, prompt_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., ttft_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., reused_entry: _Optional[bool] = ..., score_ms: _Optional[float] = ..., publish_ms: _Optional[float] = ..., coverage: _Optional[float] = ..., kv_mask: _Optional[_Union[_plan_pb2.KvMask, _Mapping]] = ..., load: _Optional[_Union[TargetLoad, _Mapping]] = ..., replica: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("model", "engine", "supported_routes", "running_requests", "unsupported_routes", "kv_page_tokens", "kv_pool_tokens", "load", "replica")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_ROUTES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_ROUTES_FIELD_NUMBER: _ClassVar[int]
    KV_PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_POOL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    model: _plan_pb2.ModelInfo
    engine: str
    supported_routes: _containers.RepeatedScalarFieldContainer[_plan_pb2.Route]
    running_requests: int
    unsupported_routes: _containers.RepeatedCompositeFieldContainer[UnsupportedRoute]
    kv_page_tokens: int
    kv_pool_tokens: int
    load: TargetLoad
    replica: str
    def __init__(self, model: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., engine: _Optional[str] = ..., supported_routes: _Optional[_Iterable[_Union[_plan_pb2.Route, str]]] = ..., running_requests: _Optional[int] = ..., unsupported_routes: _Optional[_Iterable[_Union[UnsupportedRoute, _Mapping]]] = ..., kv_page_tokens: _Optional[int] = ..., kv_pool_tokens: _Optional[int] = ..., load: _Optional[_Union[TargetLoad, _Mapping]] = ..., replica: _Optional[str] = ...) -> None: ...

class UnsupportedRoute(_message.Message):
    __slots__ = ("route", "reason")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    route: _plan_pb2.Route
    reason: str
    def __init__(self, route: _Optional[_Union[_plan_pb2.Route, str]] = ..., reason: _Optional[str] = ...) -> None: ...
