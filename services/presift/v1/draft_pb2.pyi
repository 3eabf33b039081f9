from presift.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreRequest(_message.Message):
    __slots__ = ("token_ids", "policy", "protected_spans", "lookahead_tokens", "include_importance", "cache_salt")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_SPANS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_IMPORTANCE_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    policy: _plan_pb2.Policy
    protected_spans: _containers.RepeatedCompositeFieldContainer[_plan_pb2.Span]
    lookahead_tokens: int
    include_importance: bool
    cache_salt: str
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., policy: _Optional[_Union[_plan_pb2.Policy, _Mapping]] = ..., protected_spans: _Optional[_Iterable[_Union[_plan_pb2.Span, _Mapping]]] = ..., lookahead_tokens: _Optional[int] = ..., include_importance: _Optional[bool] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("token_mask", "kv_mask", "lookahead_token_ids", "coverage", "importance", "model", "timings", "kv_capacity", "mass", "kv_coverage", "cached_tokens")
    TOKEN_MASK_FIELD_NUMBER: _ClassVar[int]
    KV_MASK_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    MASS_FIELD_NUMBER: _ClassVar[int]
    KV_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_mask: _plan_pb2.TokenMask
    kv_mask: _plan_pb2.KvMask
    lookahead_token_ids: _containers.RepeatedScalarFieldContainer[int]
    coverage: float
    importance: _containers.RepeatedScalarFieldContainer[float]
    model: _plan_pb2.ModelInfo
    timings: ScoreTimings
    kv_capacity: int
    mass: _containers.RepeatedScalarFieldContainer[float]
    kv_coverage: float
    cached_tokens: int
    def __init__(self, token_mask: _Optional[_Union[_plan_pb2.TokenMask, _Mapping]] = ..., kv_mask: _Optional[_Union[_plan_pb2.KvMask, _Mapping]] = ..., lookahead_token_ids: _Optional[_Iterable[int]] = ..., coverage: _Optional[float] = ..., importance: _Optional[_Iterable[float]] = ..., model: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., timings: _Optional[_Union[ScoreTimings, _Mapping]] = ..., kv_capacity: _Optional[int] = ..., mass: _Optional[_Iterable[float]] = ..., kv_coverage: _Optional[float] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class ScoreTimings(_message.Message):
    __slots__ = ("queue_ms", "prefill_ms", "lookahead_ms", "select_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_MS_FIELD_NUMBER: _ClassVar[int]
    SELECT_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    prefill_ms: float
    lookahead_ms: float
    select_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., lookahead_ms: _Optional[float] = ..., select_ms: _Optional[float] = ...) -> None: ...

class DraftServiceGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DraftServiceGetInfoResponse(_message.Message):
    __slots__ = ("model", "max_queue", "supported_routes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_ROUTES_FIELD_NUMBER: _ClassVar[int]
    model: _plan_pb2.ModelInfo
    max_queue: int
    supported_routes: _containers.RepeatedScalarFieldContainer[_plan_pb2.Route]
    def __init__(self, model: _Optional[_Union[_plan_pb2.ModelInfo, _Mapping]] = ..., max_queue: _Optional[int] = ..., supported_routes: _Optional[_Iterable[_Union[_plan_pb2.Route, str]]] = ...) -> None: ...
